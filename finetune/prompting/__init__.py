"""Zero- and few-shot evaluation with prompts, and text generation (GPT-2, GPT-3).

`evaluate_prompts(recipe, shots, seeds)` evaluates without training.
"""

from finetune.prompting.evaluator import (
    PromptEvaluator,
    PromptOptions,
    PromptResult,
    evaluate_prompts,
)

__all__ = ["PromptEvaluator", "PromptOptions", "PromptResult", "evaluate_prompts"]
