"""Tasks asked in words, without training: zero-, one- and few-shot (GPT-2, GPT-3).

`ask(recipe, shots, seeds)` gives scores. It is looked up when it is first used.
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

_HOME = "finetune.prompting.evaluator"

__all__ = ["PromptEvaluator", "PromptOptions", "PromptResult", "evaluate_prompts"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'finetune.prompting' has no attribute {name!r}")
    return getattr(import_module(_HOME), name)
