"""The columns of streamed rows: those of the first ones, which all others have to keep to."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from finetune.data import RowLocation, detect_format
from task_formats import Row, RowError, UsageError

_LOOK_AHEAD = 1000
"""Rows whose columns make the columns of the output."""


def find_columns(
    rows: Iterable[tuple[RowLocation, Row]],
) -> tuple[list[str], Iterator[tuple[RowLocation, Row]]]:
    """The columns of the first rows, none where there is no row, and all rows.

    The rows raise RowError at one that has a column besides.
    """
    remaining = iter(rows)
    first = list(itertools.islice(remaining, _LOOK_AHEAD))
    columns = list(dict.fromkeys(name for _, row in first for name in row))
    return columns, _same_columns(itertools.chain(first, remaining), set(columns))


def _same_columns(
    rows: Iterable[tuple[RowLocation, Row]], known: set[str]
) -> Iterator[tuple[RowLocation, Row]]:
    for place, row in rows:
        strange: Sequence[str] = sorted(set(row) - known)
        if strange:
            raise RowError(
                f"the column {strange[0]!r} is in none of the first {_LOOK_AHEAD} rows",
                where=str(place),
                cure="Give every row the same columns: the output has one set of them.",
            )
        yield place, row


def choose_format(output: str, format: str | None = None) -> str:
    """The format to write; UsageError, before any work is done, where that cannot be."""
    if output == "-" and format is None:
        what = "standard output has no name that tells a format"
        raise UsageError(what, cure="Name a file with -o.")
    kind = detect_format(output, format)
    if output != "-" and not Path(output).absolute().parent.is_dir():
        what = f"there is no folder {str(Path(output).parent)!r}"
        raise UsageError(what, where=output, cure="Make it, or name another file with -o.")
    return kind


def keep_apart(file: str, output: str) -> None:
    """UsageError where rows would be written over the file that they are read from."""
    if output != "-" and file != "-" and Path(output).exists() and Path(output).samefile(file):
        raise UsageError(f"{output} is the file that is read", cure="Name another one with -o.")
