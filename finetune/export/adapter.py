"""LoRA adapters, unmerged, as a folder of peft."""

import json
import shutil
from pathlib import Path

from finetune.checkpointing.model_folder import ADAPTER
from finetune.checkpointing.run_folder import MODEL
from finetune.export.source import ExportSource
from finetune.export.standalone import SCRIPT, write_head, write_prediction_script
from finetune.models.pretrained import find_base
from finetune.storage.files import write_atomically
from task_formats import UsageError

_CONFIG = "adapter_config.json"
_CHANGES = {
    "from transformers import AutoModel\n": "from peft import AutoPeftModelForCausalLM\n",
    'DECODER = AutoModel.from_pretrained(FOLDER, dtype="auto").eval()\n': (
        "MODEL = AutoPeftModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)\n"
        "DECODER = MODEL.merge_and_unload().base_model.eval()\n"
    ),
}
"""Lines of the `predict.py` of transformers to those of peft."""


def write_adapter(source: ExportSource, folder: Path) -> None:
    """Writes the adapters, the rows of the new tokens, the head, tokenizer and `predict.py`.

    `AutoPeftModelForCausalLM.from_pretrained` reads the folder; it loads the base by its name.

    Raises:
        UsageError: The run did not train adapters, did not keep them, or has no base to add to.
    """
    config, saved = source.predictor.recipe.base, source.model_folder / ADAPTER
    where = str(source.run)
    if config.lora is None:
        cure = "Use another format, or train again with --set base.lora={}."
        raise UsageError("this run trained all weights, not adapters", where=where, cure=cure)
    if config.quantization is not None:
        what = (
            f"these adapters are for the base in 4 bits, and are in {source.run / MODEL / ADAPTER}"
        )
        raise UsageError(what, where=where, cure="Use --to standalone, in which they are merged.")
    if config.from_scratch:
        what = "adapters on random weights need these weights"
        raise UsageError(what, where=where, cure="Use --to standalone.")
    if not saved.is_dir():
        what = "this run kept its adapters merged only, as older versions of gptft did"
        raise UsageError(what, where=where, cure="Train it again, or use another format.")
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    content = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    content |= {
        "base_model_name_or_path": find_base(config.path),
        "revision": config.revision,
        "task_type": "CAUSAL_LM",
    }
    write_atomically(folder / _CONFIG, json.dumps(content, indent=2) + "\n")
    source.predictor.base.task_tokens.tokenizer.save_pretrained(folder)
    write_head(source, folder)
    script = SCRIPT
    for line, other in _CHANGES.items():
        assert line in script
        script = script.replace(line, other)
    write_prediction_script(source, folder, script)
