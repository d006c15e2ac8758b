"""How two configurations differ."""

from collections.abc import Mapping
from typing import Any


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns the first key whose values differ, with both values; empty if all are equal.

    >>> describe_difference({"train.epochs": 3}, {"train.epochs": 5})
    'train.epochs: 3, not 5'
    """
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key}: {old.get(key)!r}, not {new.get(key)!r}"
    return ""
