"""Columns and format of the rows that a command writes."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from finetune.data import RowLocation, detect_format
from finetune.data.examples import LocatedExample
from task_formats import Row, RowError, UsageError

_LOOK_AHEAD = 1000
"""Number of first rows that determine the columns of the output."""

Located = TypeVar("Located", LocatedExample, tuple[RowLocation, Row])
"""A location and its row, perhaps with the example made of it."""


def find_columns(
    items: Iterable[Located],
) -> tuple[list[str], Iterator[Located]]:
    """Finds the columns of a stream of rows from its first rows.

    Returns:
        The columns (empty without rows), and an iterator over all rows, which raises RowError at
        a row with another column.
    """
    remaining = iter(items)
    first = list(itertools.islice(remaining, _LOOK_AHEAD))
    columns = list(dict.fromkeys(name for item in first for name in item[1]))
    return columns, _check_columns(itertools.chain(first, remaining), set(columns))


def _check_columns(items: Iterable[Located], known: set[str]) -> Iterator[Located]:
    for item in items:
        if unknown := sorted(set(item[1]) - known):
            raise RowError(
                f"the column {unknown[0]!r} is in none of the first {_LOOK_AHEAD} rows",
                where=str(item[0]),
                cure="Give every row the same columns.",
            )
        yield item


def choose_format(output: str, format: str | None = None) -> str:
    """The format in which to write the output.

    Raises:
        UsageError: The format is unknown, or the folder of the output does not exist.
    """
    if output == "-" and format is None:
        what = "the format of standard output is unknown"
        raise UsageError(what, cure="Name a file with -o.")
    output_format = detect_format(output, format)
    if output != "-" and not Path(output).absolute().parent.is_dir():
        what = f"there is no folder {str(Path(output).parent)!r}"
        raise UsageError(what, where=output, cure="Create it, or name another file with -o.")
    return output_format


def check_differs(file: str, output: str) -> None:
    """Raises UsageError if the output file is the input file."""
    if output != "-" and file != "-" and Path(output).exists() and Path(output).samefile(file):
        raise UsageError(f"{output} is also the input file", cure="Name another one with -o.")
