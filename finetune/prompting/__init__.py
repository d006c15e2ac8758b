"""Zero- and few-shot evaluation with prompts, and text generation (GPT-2, GPT-3).

`evaluate_prompts(recipe, shots, seeds)` evaluates without training. Names are imported on first
use, so importing this package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.prompting.evaluator import (
        PromptEvaluator,
        PromptOptions,
        PromptResult,
        evaluate_prompts,
    )

__all__ = ["PromptEvaluator", "PromptOptions", "PromptResult", "evaluate_prompts"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'finetune.prompting' has no attribute {name!r}")
    return getattr(import_module("finetune.prompting.evaluator"), name)
