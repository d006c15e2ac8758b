"""The values that flow through this package: rows, examples, encodings and predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Row = Mapping[str, Any]
"""One record of a data set; never changed."""

Label = int | float | tuple[float, ...] | None
"""The index of a class or a choice, a score, the probability of every class, or for each of several
labels 1 if it applies and 0 if not; None for an unlabelled example."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a task, as text.

    >>> Example("train/0", {"premise": "It rains.", "hypothesis": "It is wet."}, label=0).label
    0
    """

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...] = ()
    label: Label = None


class Encoded(NamedTuple):
    """One example as K token sequences (views): view k is `prefix + endings[k]`.

    Read in W windows, an example has the views of the first window, then those of the second, ...
    """

    id: str
    prefix: Sequence[int]
    endings: Sequence[Sequence[int]]
    label: Label = None
    truncated_tokens: int = 0
    """Tokens removed by truncation, over the distinct texts of the example."""
    windows: int = 1
    """Number of windows W; the K views are W times those of one window."""

    @property
    def tokens(self) -> int:
        """Tokens to read when the prefix is read once."""
        return len(self.prefix) + sum(map(len, self.endings))


class SpecialTokens(NamedTuple):
    """Ids of the start, delimiter and extract tokens (GPT-1, section 3.3)."""

    start: int
    delimiter: int
    extract: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model predicts for one example."""

    id: str
    label: str | float | tuple[str, ...]
    """A class name, a score, or the names of several labels."""
    scores: tuple[float, ...] = ()
    """A probability per class, label or choice; for a score task the score itself."""
