"""Texts about the weather that a tiny base learns in a few updates, and their classifier."""

from pathlib import Path
from typing import Any

import finetune

QUICK = {
    "learning_rate": 1e-2,
    "batch_size": 6,
    "epochs": 4,
    "max_tokens": 48,
    "head_dropout": 0,
    "precision": "fp32",
}
WET = ["It rained all night.", "The street was wet.", "Rain, rain and rain.", "A wet morning."]
DRY = ["He rides a horse.", "A horse on the grass.", "The old atlas.", "A man and his horse."]
TEXTS = [*WET, *DRY] * 2
LABELS = (["wet"] * 4 + ["dry"] * 4) * 2
PAIRS = [(text, "It is wet.") for text in TEXTS]


def classifier(folder: Path, /, **settings: Any) -> finetune.Classifier:
    """Makes an unfitted classifier without dropout; `settings` override QUICK."""
    base = {"path": str(folder), "dropout": 0}
    return finetune.Classifier(**{"base": base, **QUICK, **settings})
