"""The values that flow on the text side: a row, an example, its encoding and a prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""One record as the data set has it; never changed."""

Label = int | float | None
"""The index of a class or a choice, a score, or None where unlabelled."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question to a model, in words.

    >>> Example("train/0", {"premise": "It rains.", "hypothesis": "It is wet."}, label=0).label
    0
    """

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...] = ()
    label: Label = None


class Encoded(NamedTuple):
    """One example as K token sequences: view k reads `prefix + endings[k]`."""

    id: str
    prefix: Sequence[int]
    endings: Sequence[Sequence[int]]
    label: Label = None
    cut: int = 0
    """How many tokens truncation took away, summed over the distinct texts of the example."""

    @property
    def tokens(self) -> int:
        """Tokens read when the prefix is read once."""
        return len(self.prefix) + sum(map(len, self.endings))


class SpecialTokens(NamedTuple):
    """Ids of the start, delimiter and extract tokens (GPT-1, section 3.3)."""

    start: int
    delimiter: int
    extract: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model answers: a class name or a score, and a probability per class or choice."""

    id: str
    label: str | float
    scores: tuple[float, ...] = field(default=())
