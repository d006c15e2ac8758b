"""Ranges of recipe values that a search draws from."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune.recipe.loading import override_recipe
from finetune.recipe.schema import Recipe, TrainConfig
from finetune.recipe.validation import walk_fields
from finetune.recipe.yaml_documents import format_value, parse_value, read_document
from task_formats import UsageError, suggest

SECTIONS = ("train", "base", "head")
_INTERVAL = re.compile(r"(?P<low>.+?)\.\.(?P<high>.+?)(?P<log>:log)?")
_CURE = "Write LOW..HIGH, LOW..HIGH:log, or choices separated by commas."


class Interval(NamedTuple):
    """All numbers between two, ends included."""

    low: float
    high: float
    log: bool
    """Draw uniformly on a logarithmic scale."""
    whole: bool
    """Only whole numbers."""

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{':log' if self.log else ''}"

    def contains(self, value: Any) -> bool:
        """Whether a value is a number in this range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high


class Choices(NamedTuple):
    """Some values, of any type."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ",".join(map(format_value, self.values))

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return value in self.values


Space = Mapping[str, Interval | Choices]
"""Dotted key of the recipe to its range."""


def build_space(recipe: Recipe, texts: Iterable[str], file: Path | None = None) -> dict[str, Any]:
    """Builds the search space from KEY=RANGE texts and from a YAML file.

    A key without a section is one of `train`. In the file, a range is a list of choices or the
    text of a range: `{learning_rate: 1e-5..5e-4:log, epochs: [1, 2, 3]}`.

    Raises:
        UsageError: A key is unknown or given twice, a range is not valid, or the recipe refuses
            one of its values; or there is no range.
    """
    entries: list[tuple[str, Any, str]] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            cure = "Write it as --range learning_rate=1e-5..5e-4:log."
            raise UsageError(f"--range {text} is not key=range", cure=cure)
        entries.append((key.strip(), value.strip(), f"--range {text}"))
    if file is not None:
        document = read_document(file)
        entries += [
            (str(k), v, f"{file}, line {document.lines[k,]}") for k, v in document.data.items()
        ]
    space: dict[str, Interval | Choices] = {}
    for name, value, where in entries:
        key = name if "." in name else f"train.{name}"
        _check_key(key, where)
        if key in space:
            raise UsageError(f"{key} is given twice", where=where, cure="Give it once.")
        space[key] = _parse(recipe, key, value, where)
    if not space:
        cure = "Give at least one, such as --range learning_rate=1e-5..5e-4:log."
        raise UsageError("there is no range to search", cure=cure)
    return space


def _check_key(key: str, where: str) -> None:
    known = [name for name, _ in walk_fields(Recipe) if name.partition(".")[0] in SECTIONS]
    if key == "train.seed":
        cure = "Use --seeds to train every trial with several seeds."
        raise UsageError("the seed is not a setting to search", where=where, cure=cure)
    if key not in known or key in SECTIONS:
        cure = suggest(key, [*known, *TrainConfig.model_fields])
        raise UsageError(f"unknown key {key!r}", where=where, cure=cure)


def _parse(recipe: Recipe, key: str, value: Any, where: str) -> Interval | Choices:
    if isinstance(value, str) and (match := _INTERVAL.fullmatch(value)):
        low, high = (parse_value(match[name].strip()) for name in ("low", "high"))
        if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)):
            raise UsageError(f"{value!r} is not between two numbers", where=where, cure=_CURE)
        if not low < high:
            cure = "Write the lower number first."
            raise UsageError(f"{value!r} is an empty range", where=where, cure=cure)
        if match["log"] and low <= 0:
            cure = "Raise the lower end, or leave :log out."
            raise UsageError(f"{value!r}: a logarithmic range is above 0", where=where, cure=cure)
        for end in (low, high):
            _check_value(recipe, key, end, where)
        return Interval(
            low, high, bool(match["log"]), not _accepts_fractions(recipe, key, low, high)
        )
    choices = parse_value(f"[{value}]") if isinstance(value, str) else value
    choices = choices if isinstance(choices, list) else [choices]
    texts = [json.dumps(choice) for choice in choices]
    if not choices or len(set(texts)) < len(texts):
        what = "has no choices" if not choices else "has a choice twice"
        raise UsageError(f"{key} {what}", where=where, cure=_CURE)
    for choice in choices:
        _check_value(recipe, key, choice, where)
    return Choices(tuple(choices))


def _check_value(recipe: Recipe, key: str, value: Any, where: str) -> None:
    try:
        override_recipe(recipe, {key: value})
    except UsageError as error:
        raise UsageError(error.what, where=where, cure=error.cure or _CURE) from None


def _accepts_fractions(recipe: Recipe, key: str, low: float, high: float) -> bool:
    try:
        override_recipe(recipe, {key: low + (high - low) / math.pi})
    except UsageError:
        return False
    return True
