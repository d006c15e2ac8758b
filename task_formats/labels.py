"""What a label can be: one of C named classes, several of them, or a score in a range."""

import ast
import difflib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Real
from typing import Any, ClassVar, Literal

from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Prediction

_FREQUENT = 5
"""Rows of a label that one row with a similar label may have been meant for."""
_SIMILAR = 0.8
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_NUMBER = re.compile(r"\d+|(?<![^\W_])[^\W_](?![^\W_])")
"""A number, or a single letter, in a label."""
LabelKind = Literal["classes", "scores", "multi_label"]


@dataclass(frozen=True)
class Classes:
    """Named classes."""

    kind: ClassVar[LabelKind] = "classes"
    names: tuple[str, ...]
    """In the order of the head's outputs."""
    raw: Mapping[str, str]
    """Values of the label column to names."""
    ordered: bool = False
    """True if the names go from low to high, as in ratings."""
    soft: bool = False
    """True if the label of a row is a probability for every class."""

    @classmethod
    def of(cls, labels: Mapping[Any, str] | Sequence[str]) -> "Classes":
        """Makes classes from {raw value: name}, or from names that the data uses as they are."""
        pairs = labels.items() if isinstance(labels, Mapping) else zip(labels, labels, strict=True)
        raw: dict[str, str] = {}
        for key, name in ((as_text(key), as_text(name)) for key, name in pairs):
            if key in raw:
                raise UsageError(f"label {key!r} is given twice", cure="Give every label once.")
            raw[key] = name
        names = dict.fromkeys(raw.values())
        if "" in names:
            raise UsageError("a label has an empty name", cure="Give every label a name.")
        if len(names) < 2:
            cure = "Write labels: {0: no, 1: yes}, or range: [0, 5] for a score."
            raise UsageError(f"labels need at least two names (got {list(names)})", cure=cure)
        for key, name in raw.items():
            if key in names and key != name:
                what = f"label {key!r} is a raw value of one class and the name of another"
                raise UsageError(what, cure="Rename the classes.")
        return cls(tuple(names), raw)

    @property
    def num_outputs(self) -> int:
        """Outputs of a classification head: C."""
        return len(self.names)

    @cached_property
    def _index(self) -> dict[str, int]:
        by_name = {name: index for index, name in enumerate(self.names)}
        return {**by_name, **{key: by_name[name] for key, name in self.raw.items()}}

    @cached_property
    def _similar(self) -> dict[str, int]:
        return {normalize_label(text): index for text, index in reversed(self._index.items())}

    def parse(self, value: Any) -> int | tuple[float, ...]:
        """Returns the class index of a label, or the (C,) probabilities of a soft one.

        Raises:
            RowError: A label is unknown, or the probabilities are none.
        """
        return self.parse_distribution(value) if self.soft else self.parse_class(value)

    def parse_distribution(self, value: Any) -> tuple[float, ...]:
        """Returns (C,) probabilities, which add up to 1.

        Args:
            value: A list of C numbers, a table of labels and numbers, the text of either in JSON
                or Python, or a label, which is certain then. The numbers are probabilities, or
                counts of votes. Labels that a table does not name have 0.
        """
        value = parse_literal(value)
        if isinstance(value, Mapping):
            by_class = {self.parse_class(name): number for name, number in value.items()}
            if len(by_class) < len(value):
                raise RowError("a label has two probabilities", cure="Give it one.")
            numbers = [_parse_number(by_class.get(k)) for k in range(self.num_outputs)]
        elif isinstance(value, list | tuple):
            numbers = [*map(_parse_number, value)]
        else:
            index = self.parse_class(value)
            return tuple(float(k == index) for k in range(self.num_outputs))
        if len(numbers) != self.num_outputs:
            what = f"{len(numbers)} probabilities for {self.num_outputs} labels"
            raise RowError(what, cure="Give one for each of task.labels, in their order.")
        total, is_votes = math.fsum(numbers), all(number.is_integer() for number in numbers)
        if min(numbers) < 0 or total <= 0 or not (is_votes or abs(total - 1) <= _MAX_ROUNDING):
            what = f"{_shorten(value)} are no probabilities: they add up to {total:g}"
            cure = "Give numbers from 0 to 1 that add up to 1, or whole numbers of votes."
            raise RowError(what, cure=cure)
        return tuple(number / total for number in numbers)

    def parse_class(self, value: Any) -> int:
        """Returns the class index of a raw value or a name; RowError for an unknown one.

        Equal numbers ("1.0" and "1") and equal letters in other Unicode forms are equal labels.
        """
        text = as_text(value)
        if (index := self._index.get(text)) is None:
            index = self._similar.get(normalize_label(text))
        if index is None:
            raise RowError(f"unknown label {_shorten(value)}", cure=partial(self._suggest, text))
        return index

    def _suggest(self, text: str) -> str:
        return f"{suggest(text, self._index)} Correct the row, or add the label to task.labels."

    def name(self, label: Any) -> str:
        """Returns the name of a class index, or of the most probable class."""
        if isinstance(label, Sequence):
            label = max(range(len(label)), key=label.__getitem__)
        return self.names[int(label)]

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """Returns the most likely class (the first of equals) and the softmax of the logits."""
        best = max(range(len(logits)), key=logits.__getitem__)
        exponentials = [math.exp(value - logits[best]) for value in logits]
        total = math.fsum(exponentials)
        return Prediction(id, self.names[best], tuple(value / total for value in exponentials))

    def predict_majority(self, labels: Sequence[Any]) -> Prediction:
        """Returns the most frequent of N labels (the first of equals) and all frequencies.

        The frequency of a soft label is its mean probability.
        """
        if isinstance(labels[0], Sequence):
            frequencies = tuple(
                math.fsum(column) / len(labels) for column in zip(*labels, strict=True)
            )
        else:
            counts = Counter(map(int, labels))
            frequencies = tuple(counts[k] / len(labels) for k in range(self.num_outputs))
        return Prediction("", self.names[frequencies.index(max(frequencies))], frequencies)


@dataclass(frozen=True)
class MultiLabel:
    """Any number of named labels at once; trained with binary cross-entropy per label."""

    kind: ClassVar[LabelKind] = "multi_label"
    classes: Classes
    separator: str = ","
    """Text between two labels."""
    thresholds: tuple[float, ...] = ()
    """The probability from which each of the C labels is predicted; empty: 0.5 for all."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the head's outputs."""
        return self.classes.names

    @property
    def raw(self) -> Mapping[str, str]:
        """Values of the label column to names."""
        return self.classes.raw

    @property
    def num_outputs(self) -> int:
        """Outputs of a classification head: C."""
        return self.classes.num_outputs

    def parse(self, value: Any) -> tuple[float, ...]:
        """Returns (C,) numbers: 1 for each label that applies, else 0.

        Args:
            value: A list of labels, its text, labels with separators between them, C zeros and
                ones, or label columns and their values, each 0 or 1.

        Raises:
            RowError: A label is unknown, or a value is not 0 or 1.
        """
        if isinstance(value, Mapping):
            applies = {
                self.classes.parse_class(name): _parse_flag(value[name], name) for name in value
            }
            return tuple(float(applies.get(k, False)) for k in range(self.num_outputs))
        if as_text(value) in self.classes.raw or as_text(value) in self.names:
            value = [value]
        items = split_labels(value, self.separator)
        # Labels do not occur twice, so three or more zeros and ones are no list of labels.
        if (
            len(items) == self.num_outputs > 2
            and {as_text(item) for item in items} <= _FLAGS.keys()
        ):
            return tuple(float(_FLAGS[as_text(item)]) for item in items)
        present = {self.classes.parse_class(item) for item in items}
        return tuple(float(k in present) for k in range(self.num_outputs))

    def name(self, label: Any) -> tuple[str, ...]:
        """Returns the names of the labels that apply."""
        return tuple(name for name, applies in zip(self.names, label, strict=True) if applies)

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """Returns the labels at or above their thresholds, and the sigmoid of each logit."""
        scores = tuple(map(_sigmoid, logits))
        thresholds = self.thresholds or (0.5,) * self.num_outputs
        label = self.name([score >= t for score, t in zip(scores, thresholds, strict=True)])
        return Prediction(id, label, scores)

    def predict_majority(self, labels: Sequence[Any]) -> Prediction:
        """Returns the labels that apply to at least half of N rows, and all frequencies."""
        frequencies = tuple(sum(column) / len(labels) for column in zip(*labels, strict=True))
        return Prediction("", self.name([share >= 0.5 for share in frequencies]), frequencies)

    def with_thresholds(self, thresholds: Mapping[str, float]) -> "MultiLabel":
        """Returns the labels with a threshold for each name.

        Raises:
            UsageError: The names are not those of the labels, or a threshold is no probability.
        """
        if thresholds.keys() != set(self.names):
            what = f"thresholds for {sorted(thresholds)}, and the labels are {sorted(self.names)}"
            raise UsageError(what, cure="Give a threshold for every label.")
        for name, value in thresholds.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                what = f"the threshold of {name!r} is not a number from 0 to 1 (got {value!r})"
                raise UsageError(what)
        return replace(self, thresholds=tuple(float(thresholds[name]) for name in self.names))


_MAX_ROUNDING = 0.01
"""How far from 1 the sum of rounded probabilities may be."""


def _parse_number(value: Any) -> float:
    """A number; 0 for an empty value."""
    text = as_text(value)
    try:
        number = float(text or 0)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"probability {_shorten(value)} is not a number", cure="Correct the row.")
    return number


_FLAGS = {"0": False, "1": True, "False": False, "True": True}


def _parse_flag(value: Any, column: str) -> bool:
    text = as_text(value)
    if text.capitalize() not in _FLAGS:
        cure = "A column of a label holds 1 where the label applies, else 0."
        raise RowError(f"{value!r} in column {column!r} is not 0 or 1", cure=cure)
    return _FLAGS[text.capitalize()]


def split_labels(value: Any, separator: str) -> list[Any]:
    """Returns the labels of a list, of its text in JSON or Python, or of separated text.

    >>> split_labels("joy, anger", ","), split_labels("['joy']", ","), split_labels([0, 4], ",")
    (['joy', 'anger'], ['joy'], [0, 4])
    """
    value = parse_list(value)
    if isinstance(value, list | tuple | set):
        return list(value)
    return [text for item in as_text(value).split(separator) if (text := item.strip())]


def parse_list(value: Any) -> Any:
    """Returns the list that an array is or a text holds in JSON or Python; else the value."""
    return parse_literal(value, "[")


def parse_literal(value: Any, opening: str = "[{") -> Any:
    """Returns the list or table that an array is or a text holds; else the value.

    Args:
        value: A value of a column.
        opening: Characters with which a text in JSON or Python begins.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, str) and value.strip().startswith(tuple(opening)):
        for parse in (json.loads, ast.literal_eval):
            # It may be text, or brackets nested so deeply that a parser refuses them.
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(value.strip())
    return value


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return (odds := math.exp(logit)) / (1 + odds)


@dataclass(frozen=True)
class Range:
    """A score between two bounds, both included; trained with squared error."""

    kind: ClassVar[LabelKind] = "scores"
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            bounds = [self.low, self.high]
            raise UsageError(f"range must be two numbers, low then high (got {bounds})")

    @property
    def num_outputs(self) -> int:
        """Outputs of a regression head: one."""
        return 1

    @property
    def names(self) -> tuple[str, ...]:
        """A score has no names."""
        return ()

    def parse(self, value: Any) -> float:
        """Returns the score; RowError if it is not a number in the range."""
        try:
            number = float(decimal_point(value) if isinstance(value, str) else value)
        except (TypeError, ValueError):
            number = math.nan
        if not self.low <= number <= self.high:
            what = f"label {_shorten(value)} is not a number from {self.low:g} to {self.high:g}"
            raise RowError(what, cure="Correct the row, or task.range.")
        return number

    def name(self, label: Any) -> float:
        """Returns the score itself."""
        return float(label)

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """Returns the head's output as the score; it is not clipped, which keeps the ranking."""
        return Prediction(id, float(logits[0]), (float(logits[0]),))

    def predict_majority(self, labels: Sequence[Any]) -> Prediction:
        """Returns the mean of N scores."""
        mean = math.fsum(labels) / len(labels)
        return Prediction("", mean, (mean,))


Labels = Classes | MultiLabel | Range


def _shorten(value: Any) -> str:
    """A value for a message: a column of texts that was taken for the labels can be long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def find_typing_errors(counts: Mapping[str, int]) -> dict[str, str]:
    """Returns labels of one row that may be typing errors, with the frequent labels they resemble.

    >>> find_typing_errors({"positive": 20, "negative": 20, "postive": 1, "neutral": 1})
    {'postive': 'positive'}
    """
    frequent = [text for text, count in counts.items() if count >= _FREQUENT]
    found = {}
    for text in (text for text, count in counts.items() if count == 1):
        for other in difflib.get_close_matches(text, frequent, cutoff=_SIMILAR):
            # "unhappy" and "happy", "class 1" and "class 2" are different labels.
            is_negation = text.endswith(other) or other.endswith(text)
            is_numbered = _NUMBER.sub("#", text) == _NUMBER.sub("#", other)
            if not is_negation and not is_numbered:
                found[text] = other
                break
    return found


def decimal_point(text: str) -> str:
    """Returns a number with a decimal comma, such as 1,5, with a point; other text as it is."""
    return text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text.strip()) else text


def clean_answer(text: str) -> str:
    """Returns an answer without brackets and points: B for (B), b. and B)."""
    return text.strip("()[]{}.: ")


def normalize_label(text: str) -> str:
    """Returns a label in NFC, and a whole number without a fraction."""
    with suppress(ValueError):
        if (number := float(text)).is_integer() and "_" not in text:
            return str(int(number))
    return unicodedata.normalize("NFC", text)


def as_text(value: Any) -> str:
    """Returns a label as text: 1, 1.0 and "1" are equal; None and NaN are ""."""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, int) and isinstance(value, Real):  # numpy's numbers are Real too
        number = float(value)
        if math.isnan(number):
            return ""
        value = int(number) if number.is_integer() else number
    return "" if value is None else str(value).strip()
