"""What most processes of tests need, imported by the server from which they fork."""

import importlib
from importlib.util import find_spec

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

for name in (
    "finetune.comparison",
    *(["peft"] if find_spec("peft") else []),
    "scipy.stats",
    "sklearn.metrics",
    "tests.support.processes",
    "torch.profiler",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
# transformers compiles a thousand patterns, and keeps them.
get_checkpoint_conversion_mapping("gpt2")
