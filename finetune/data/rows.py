"""Where a row stands, how its file is to be read, and the bounds no file may pass."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from task_formats import Row, RowError

MAX_ROW_BYTES = 2**23
"""Bytes of the longest row that is read (8 MiB): what one row may cost in memory is bounded."""
MAX_COLUMNS = 10_000
"""Columns of the widest table that is read."""


class RowLocation(NamedTuple):
    """Where a row begins.

    >>> str(RowLocation("train.tsv", 17))
    'train.tsv, line 17'
    """

    file: str
    line: int
    unit: str = "line"
    """What is counted, from 1: lines, or rows and questions where a file has no lines."""

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"


Scanned = tuple[RowLocation, Row | RowError]
"""A place with the row that stands there, or with what is wrong with it."""


class Rows(Protocol):
    """The rows of one split; every iteration begins anew."""

    @property
    def origin(self) -> str:
        """Where the rows come from, for people."""
        ...

    def scan(self) -> Iterator[Scanned]:
        """All rows in order, unusable ones as the RowError that says why."""
        ...

    def __iter__(self) -> Iterator[tuple[RowLocation, Row]]:
        """All rows in order; raises RowError at the first unusable one."""
        ...

    def fingerprint(self) -> str:
        """A sha256 over the contents, in hexadecimal."""
        ...


@dataclass(frozen=True)
class ReadOptions:
    """How a file is to be read: its format, and what its columns are called.

    GLUE's CoLA has no header and other names than the hub, so it is read with
    `ReadOptions("tsv", columns=("source", "label", "mark", "sentence"))`.
    """

    format: str
    columns: tuple[str, ...] = ()
    """Names for a file without a header. A first line that holds one of them is a header."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Column in the file to column in the row."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Column of the row to the dotted path where a nested file has it, or to a mapping of such."""
    fewest: int = 0
    """For ragged rows: fewest fields of a row. The last field belongs to the last column."""


def raise_bad_rows(scanned: Iterator[Scanned]) -> Iterator[tuple[RowLocation, Row]]:
    """The rows alone; raises the RowError of the first unusable one."""
    for place, row in scanned:
        if isinstance(row, RowError):
            raise row
        yield place, row
