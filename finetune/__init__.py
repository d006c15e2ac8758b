"""Fine-tune pretrained decoders for language understanding, the way GPT-1 did.

Names are looked up when they are first used: importing finetune costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.classifier import Classifier
    from finetune.news import Result
    from finetune.prediction import Predictor, load
    from finetune.recipe import Recipe
    from finetune.recipe_files import load_recipe
    from finetune.training import events, train

_HOMES = {
    "Classifier": "classifier",
    "Predictor": "prediction",
    "Recipe": "recipe",
    "Result": "news",
    "events": "training",
    "load": "prediction",
    "load_recipe": "recipe_files",
    "train": "training",
}

__all__ = [
    "Classifier",
    "Predictor",
    "Recipe",
    "Result",
    "events",
    "load",
    "load_recipe",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(import_module(f"finetune.{_HOMES[name]}"), name)
