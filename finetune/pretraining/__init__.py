"""The first stage of GPT-1: a decoder learns to predict plain text.

`pretrain(plan, folder)` makes a folder that is a base; `load_plan` reads a plan. Both are looked
up when they are first used: importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.pretraining.plan import Plan
    from finetune.pretraining.plan_loading import load_plan
    from finetune.pretraining.train import pretrain

_HOMES = {"Plan": "plan", "load_plan": "plan_loading", "pretrain": "train"}

__all__ = ["Plan", "load_plan", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune.pretraining' has no attribute {name!r}")
    return getattr(import_module(f"finetune.pretraining.{_HOMES[name]}"), name)
