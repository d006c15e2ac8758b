"""Fine-tune pretrained decoders for language understanding, the way GPT-1 did.

Names are imported when they are first used, so that `import finetune` is fast.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.evaluation.predictor import Predictor, load
    from finetune.recipe.loading import load_recipe
    from finetune.recipe.schema import Recipe
    from finetune.sklearn import Classifier, Regressor
    from finetune.training.events import Result
    from finetune.training.finetuning import events, train

# What runs report goes to this logger; without a handler of the user it prints nothing.
logging.getLogger("finetune").addHandler(logging.NullHandler())

_MODULES = {
    "Classifier": "sklearn",
    "Predictor": "evaluation.predictor",
    "Recipe": "recipe.schema",
    "Regressor": "sklearn",
    "Result": "training.events",
    "events": "training.finetuning",
    "load": "evaluation.predictor",
    "load_recipe": "recipe.loading",
    "train": "training.finetuning",
}

__all__ = [
    "Classifier",
    "Predictor",
    "Recipe",
    "Regressor",
    "Result",
    "events",
    "load",
    "load_recipe",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(f"finetune.{_MODULES[name]}"), name)
