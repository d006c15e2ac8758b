"""What stands in the columns of a file: counts, lengths, kinds of values."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from task_formats import Row

MOST_VALUES = 1000
"""Different values that are counted one by one; a class column has far fewer."""


@dataclass
class Column:
    """One column, seen over all rows; a nested one has a dotted name (`question.stem`)."""

    name: str
    filled: int = 0
    words: int = 0
    """Blank-separated words over all rows."""
    values: Counter[str] = field(default_factory=Counter)
    """How often each value occurs, for the first MOST_VALUES different ones."""
    numbers: int = 0
    wholes: int = 0
    lists: int = 0
    longest: int = 0
    """Items of the longest list."""
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: Any) -> None:
        """Takes one row's value into account."""
        if value is None or value == "":
            return
        self.filled += 1
        if isinstance(value, list | tuple) or hasattr(value, "tolist"):
            self.lists += 1
            self.longest = max(self.longest, len(value))
            return
        text = plain(value)
        self.words += len(text.split())
        if text in self.values or len(self.values) < MOST_VALUES:
            self.values[text] += 1
        self._add_number(text)

    def _add_number(self, text: str) -> None:
        try:
            number = float(text)
        except ValueError:
            return
        self.numbers += 1
        self.wholes += number.is_integer()
        self.low, self.high = min(self.low, number), max(self.high, number)

    @property
    def is_number(self) -> bool:
        """True when every value is a number."""
        return 0 < self.filled == self.numbers

    @property
    def is_whole(self) -> bool:
        """True when every value is a whole number."""
        return 0 < self.filled == self.wholes

    @property
    def is_list(self) -> bool:
        """True when every value is a list."""
        return 0 < self.filled == self.lists

    @property
    def mean_words(self) -> float:
        """Words per filled row."""
        return self.words / max(self.filled, 1)

    @property
    def repeats(self) -> bool:
        """True when values come again and again, as those of a class do."""
        few = len(self.values) < MOST_VALUES and 2 * len(self.values) <= self.filled
        return few or len(self.values) <= 3

    @property
    def is_unique(self) -> bool:
        """True when no value comes twice, as in an index."""
        return bool(self.values) and max(self.values.values()) == 1


def look(rows: Iterable[Row]) -> tuple[list[Column], int]:
    """The columns in order of first sight, and the number of rows."""
    columns: dict[str, Column] = {}
    count = 0
    for row in rows:
        count += 1
        for name, value in flatten(row):
            columns.setdefault(name, Column(name)).add(value)
    return list(columns.values()), count


def flatten(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values; those inside a mapping, or a list of mappings, under dotted names.

    >>> list(flatten({"q": {"stem": "Why?", "choices": [{"text": "a"}, {"text": "b"}]}}))
    [('q.stem', 'Why?'), ('q.choices.text', ['a', 'b'])]
    """
    for key, value in row.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
            shared = [inner for inner in value[0] if all(inner in item for item in value)]
            yield from ((f"{name}.{inner}", [item[inner] for item in value]) for inner in shared)
        else:
            yield name, value


def plain(value: Any) -> str:
    """A value as the label parser reads it: 1, 1.0 and "1" are one text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
