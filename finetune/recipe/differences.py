"""How two configurations differ."""

from collections.abc import Collection, Mapping
from operator import attrgetter
from typing import Any

from finetune.recipe.schema import Recipe


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns the first key whose values differ, with both values; empty if all are equal.

    >>> describe_difference({"train.epochs": 3}, {"train.epochs": 5})
    'train.epochs: 3, not 5'
    """
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key}: {old.get(key)!r}, not {new.get(key)!r}"
    return ""


def compare_settings(
    saved: Recipe, wanted: Recipe, sections: Collection[str], further: Collection[str]
) -> str:
    """Returns the first setting in which the recipe of a run is not the wanted one, or "".

    Args:
        saved: The recipe of the run.
        wanted: The recipe that it should have.
        sections: Their fields that must not change when a run is resumed are compared.
        further: Dotted keys of other fields to compare.
    """
    if wanted.train.epochs is None:  # The run has what the number of rows made of it.
        saved = saved.with_train(epochs=None)
    old, new = (
        recipe.fixed_on_resume(sections) | {key: attrgetter(key)(recipe) for key in further}
        for recipe in (saved, wanted)
    )
    return describe_difference(old, new)
