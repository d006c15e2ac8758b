"""Language-model pre-training on plain text, as in GPT-1, section 3.1.

`pretrain(plan, folder)` trains a decoder; `folder` is then a base for fine-tuning. Names are
imported on first use, so importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.pretraining.job import pretrain
    from finetune.pretraining.plan import Plan, load_plan

__all__ = ["Plan", "load_plan", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'finetune.pretraining' has no attribute {name!r}")
    module = "job" if name == "pretrain" else "plan"
    return getattr(import_module(f"finetune.pretraining.{module}"), name)
