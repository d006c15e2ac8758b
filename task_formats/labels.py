"""What a label can be: one of several named classes, or a number in a range."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Prediction


@dataclass(frozen=True)
class Classes:
    """Named classes; `raw` maps what the data says to a name.

    The order of `names` is the order of the head's outputs. It is saved with a run, so that a
    class is never known by a bare index (facts, trap 4).
    """

    names: tuple[str, ...]
    raw: Mapping[str, str]

    @classmethod
    def of(cls, labels: Mapping[Any, str] | Sequence[str]) -> "Classes":
        """From `{raw: name}`, or from a list of names that stand in the data as they are."""
        pairs = labels.items() if isinstance(labels, Mapping) else zip(labels, labels, strict=True)
        raw: dict[str, str] = {}
        for key, name in ((as_text(key), as_text(name)) for key, name in pairs):
            if key in raw:
                raise UsageError(f"label {key!r} is given twice", cure="Give every label once.")
            raw[key] = name
        names = tuple(dict.fromkeys(raw.values()))
        if "" in names:
            raise UsageError("a label has an empty name", cure="Give every label a name.")
        if len(names) < 2:
            raise UsageError(
                f"labels need at least two names, not {list(names)}",
                cure="Write labels: {0: no, 1: yes}, or range: [0, 5] for a score.",
            )
        clashing = [key for key, name in raw.items() if key in names and key != name]
        if clashing:
            what = f"label {clashing[0]!r} is both a value of one class and another's name"
            raise UsageError(what, cure="Give the classes names of their own.")
        return cls(names, raw)

    @property
    def width(self) -> int:
        """Numbers the head gives for a class label: C."""
        return len(self.names)

    @cached_property
    def _index(self) -> dict[str, int]:
        by_name = {name: index for index, name in enumerate(self.names)}
        return {**by_name, **{key: by_name[name] for key, name in self.raw.items()}}

    def parse(self, value: Any) -> int:
        """The index of a raw value or a name; RowError where it is neither."""
        text = as_text(value)
        if text not in self._index:
            raise RowError(f"unknown label {value!r}", cure=_known(text, self._index))
        return self._index[text]

    def name(self, label: float) -> str:
        """The class of an index."""
        return self.names[int(label)]

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """The most likely class and all probabilities; the first wins a tie."""
        top = max(logits)
        powers = [math.exp(value - top) for value in logits]
        total = math.fsum(powers)
        best = max(range(len(logits)), key=logits.__getitem__)
        return Prediction(id, self.names[best], tuple(power / total for power in powers))


@dataclass(frozen=True)
class Range:
    """A score between two bounds, both included; trained with squared error on the score itself."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"range [{self.low}, {self.high}] is not two numbers, low then high")

    @property
    def width(self) -> int:
        """Numbers the head gives: one."""
        return 1

    def parse(self, value: Any) -> float:
        """The number; RowError where it is none or lies outside the range."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not self.low <= number <= self.high:
            raise RowError(
                f"label {value!r} is not a number from {self.low:g} to {self.high:g}",
                cure="Correct the row, or the task's range.",
            )
        return number

    def name(self, label: float) -> float:
        """The score itself."""
        return float(label)

    def decode(self, id: str, logits: Sequence[float]) -> Prediction:
        """The score as the head gives it: never clipped, so that ranks are kept."""
        return Prediction(id, float(logits[0]), (float(logits[0]),))


Labels = Classes | Range


def as_text(value: Any) -> str:
    """A label as text: 1, 1.0 and "1" are one label; True is "True", nothing at all is ""."""
    if not isinstance(value, int) and isinstance(value, Real):  # numpy's numbers are Real too
        number = float(value)
        if math.isnan(number):
            return ""
        value = int(number) if number.is_integer() else number
    return "" if value is None else str(value).strip()


def _known(text: str, index: Mapping[str, int]) -> str:
    return f"{suggest(text, index)} Correct the row, or add the label to task.labels."
