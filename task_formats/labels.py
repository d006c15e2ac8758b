"""What a label can be: one of C named classes, or a score in a range."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from typing import Any

from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Prediction


@dataclass(frozen=True)
class Classes:
    """Named classes."""

    names: tuple[str, ...]
    """In the order of the head's outputs."""
    raw: Mapping[str, str]
    """Values of the label column to names."""

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

    def parse(self, value: Any) -> int:
        """Returns the class index of a raw value or a name; RowError for an unknown one."""
        text = as_text(value)
        if text not in self._index:
            raise RowError(f"unknown label {_shorten(value)}", cure=partial(self._suggest, text))
        return self._index[text]

    def _suggest(self, text: str) -> str:
        return f"{suggest(text, self._index)} Correct the row, or add the label to task.labels."

    def name(self, label: float) -> str:
        """Returns the name of a class index."""
        return self.names[int(label)]

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """Returns the most likely class (the first of equals) and the softmax of the logits."""
        best = max(range(len(logits)), key=logits.__getitem__)
        exponentials = [math.exp(value - logits[best]) for value in logits]
        total = math.fsum(exponentials)
        return Prediction(id, self.names[best], tuple(value / total for value in exponentials))


@dataclass(frozen=True)
class Range:
    """A score between two bounds, both included; trained with squared error."""

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
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not self.low <= number <= self.high:
            what = f"label {_shorten(value)} is not a number from {self.low:g} to {self.high:g}"
            raise RowError(what, cure="Correct the row, or task.range.")
        return number

    def name(self, label: float) -> float:
        """Returns the score itself."""
        return float(label)

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """Returns the head's output as the score; it is not clipped, which keeps the ranking."""
        return Prediction(id, float(logits[0]), (float(logits[0]),))


Labels = Classes | Range


def _shorten(value: Any) -> str:
    """A value for a message: a column of texts that was taken for the labels can be long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def as_text(value: Any) -> str:
    """Returns a label as text: 1, 1.0 and "1" are equal; None and NaN are ""."""
    if not isinstance(value, int) and isinstance(value, Real):  # numpy's numbers are Real too
        number = float(value)
        if math.isnan(number):
            return ""
        value = int(number) if number.is_integer() else number
    return "" if value is None else str(value).strip()
