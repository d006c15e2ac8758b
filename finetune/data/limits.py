"""The part of a split that a limit uses."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TypeVar

import numpy as np

from finetune.data.draws import draw_fraction, is_sorted
from finetune.data.rows import LocatedRow, Rows
from task_formats import Classes, Row, RowError, Task
from task_formats.labels import as_text, normalize_label
from task_formats.templates import look_up

_SEED = 42


@dataclass(frozen=True)
class LimitedRows(Rows):
    """The first rows of a split; if these are sorted by label, a stratified part of all its rows.

    Rows are sorted if nearly all neighbours have equal labels: the first rows have one label, or
    few. Which rows are taken is found when they are read.
    """

    rows: Rows
    task: Task
    limit: int

    @property
    def origin(self) -> str:
        """Where all rows of the split come from."""
        return self.rows.origin

    @property
    def is_drawn(self) -> bool:
        """Whether the rows are a stratified part, not the first ones."""
        return self._drawn is not None

    def read(self) -> Iterator[LocatedRow]:
        """Yields the rows in their order."""
        if self._drawn is None:
            yield from islice(self.rows.read(), self.limit)
        else:
            yield from _select(self.rows.read(), self._drawn)

    def indices(self) -> Iterator[int]:
        """Yields the index of every row in its file or data set."""
        return _select(self.rows.indices(), self._drawn)

    def describe(self) -> str:
        """Says what was found out about the file."""
        return self.rows.describe()

    def fingerprint(self) -> str:
        """SHA-256 over all rows of the split."""
        return self.rows.fingerprint()

    @cached_property
    def _drawn(self) -> set[int] | None:
        """Positions of the drawn rows; None for the first ones."""
        column = self.task.columns.get("label", "")
        is_class = isinstance(self.task.labels, Classes) and isinstance(column, str) and column
        if not is_class or self.task.convert_row:
            return None
        labels = (_read_label(row, str(column)) for _, row in self.rows.read())
        first = list(islice(labels, self.limit))
        if len(first) < self.limit or not (len({*first}) == 1 or is_sorted(first)):
            return None
        everything = np.array(list(chain(first, labels)))
        if len(everything) == self.limit or len(np.unique(everything)) == 1:
            return None
        return {*draw_fraction(everything, self.limit / len(everything), _SEED).tolist()}


Item = TypeVar("Item")


def _select(items: Iterator[Item], positions: set[int] | None) -> Iterator[Item]:
    if positions is None:
        return items
    # Indices never end.
    return (item for n, item in enumerate(islice(items, max(positions) + 1)) if n in positions)


def _read_label(row: Row | RowError, column: str) -> str:
    try:
        return "" if isinstance(row, RowError) else normalize_label(as_text(look_up(row, column)))
    except KeyError:
        return ""
