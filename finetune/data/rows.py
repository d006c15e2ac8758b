"""Located rows: what every reader yields, and the limits that hold for every file."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, NamedTuple

from task_formats import Row, RowError

MAX_ROW_BYTES = 2**23
"""Bytes of the longest row that is read (8 MiB), which bounds what a row costs in memory."""
MAX_COLUMNS = 10_000
"""Columns of the widest table that is read."""


class RowLocation(NamedTuple):
    """Where a row begins.

    >>> str(RowLocation("train.tsv", 17)), str(RowLocation("X", 3, "index"))
    ('train.tsv, line 17', 'X[3]')
    """

    source: str
    """Path of a file, or another name of where the rows come from."""
    number: int
    """Counted from 1; an index from 0."""
    unit: str = "line"
    """What is counted: line, row (where a file has no lines), question, or index."""

    def __str__(self) -> str:
        if self.unit == "index":
            return f"{self.source}[{self.number}]"
        return f"{self.source}, {self.unit} {self.number}"


LocatedRow = tuple[RowLocation, Row | RowError]
"""A location and its row, or the error that says why the row cannot be used."""


def locate_rows(rows: Iterable[Row], source: str) -> Iterator[LocatedRow]:
    """Yields rows from memory with their locations: `source[0]`, `source[1]`, ..."""
    for index, row in enumerate(rows):
        yield RowLocation(source, index, "index"), row


def number_columns(count: int) -> tuple[str, ...]:
    """Names for columns that have none: column_1, column_2, ..."""
    return tuple(f"column_{number}" for number in range(1, count + 1))


class Rows(ABC):
    """The rows of one split; every iteration starts from the first row."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the rows come from, for messages."""

    @abstractmethod
    def read(self) -> Iterator[LocatedRow]:
        """Yields all rows in order; a row that cannot be used is a RowError."""

    def describe(self) -> str:
        """Says what was found out about a file beyond its ending; empty if nothing."""
        return ""

    def class_names(self) -> dict[str, list[str]]:
        """Returns the names of classes 0, 1, ... of the columns that have them (ClassLabel)."""
        return {}

    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over the contents, in hexadecimal."""

    def indices(self) -> Iterator[int]:
        """Yields the index of every row in its file or data set, from 0."""
        return count()

    def estimate_count(self) -> int | None:
        """About how many rows there are, if that can be known without reading them."""
        return None

    def __iter__(self) -> Iterator[tuple[RowLocation, Row]]:
        """Yields all rows in order; raises RowError at the first that cannot be used."""
        for location, row in self.read():
            if isinstance(row, RowError):
                raise row
            yield location, row


@dataclass(frozen=True)
class ConcatenatedRows(Rows):
    """The rows of several sources, one after another."""

    parts: tuple[Rows, ...]

    @property
    def origin(self) -> str:
        """The first source and the number of others."""
        return f"{self.parts[0].origin} and {len(self.parts) - 1} more"

    def read(self) -> Iterator[LocatedRow]:
        """Yields all rows in order."""
        return chain.from_iterable(part.read() for part in self.parts)

    def fingerprint(self) -> str:
        """SHA-256 over those of the parts."""
        text = " ".join(part.fingerprint() for part in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()

    def estimate_count(self) -> int | None:
        """The sum of the parts."""
        counts = [part.estimate_count() for part in self.parts]
        return None if None in counts else sum(filter(None, counts))


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read: its format, and the names of its columns."""

    format: str
    columns: tuple[str, ...] = ()
    """Column names of a file without a header. A first line that holds one of them is a header."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Column in the file to column of the row."""
    nested: Mapping[str, Any] = field(default_factory=dict)
    """Column of the row to its dotted path in a nested file, or to a mapping of such paths."""
    min_fields: int = 0
    """Fewest fields of a row of a ragged file; the last field belongs to the last column."""
    delimiter: str | None = None
    """The character between columns; None finds it from the file."""
    encoding: str | None = None
    """The encoding of a text file; None is UTF-8, or UTF-16 if the file begins so."""
    header: bool | None = None
    """Whether the first line has the names of the columns; None if no `columns` are given."""
    split: str | None = None
    """The split to read of a JSON file that holds several, or the sheet of a workbook."""
