"""How far long work is: rows that are read, predicted or evaluated, and bytes of downloads.

Whoever does the work counts it in a `Progress`; a display, if there is one, shows it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")

Display = Callable[["Progress"], None]
"""Shows the progress that has just changed."""

_displays: list[Display] = []


class Progress:
    """Counts work within a `with` block.

        with Progress("encoding", total=len(rows)) as progress:
            for row in progress.count(rows):
                ...

    Args:
        description: What is done, such as "evaluating".
        total: Units in all, if known.
        unit: What is counted: "row" or "byte".
        done: Units that were done before, which do not count for the speed.
    """

    def __init__(
        self, description: str, total: int | None = None, unit: str = "row", done: int = 0
    ) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self.is_finished = False
        self._before, self._start = done, time.monotonic()

    def __enter__(self) -> "Progress":
        self._show()
        return self

    def __exit__(self, *details: object) -> None:
        self.is_finished = True
        self._show()

    def advance(self, units: int = 1) -> None:
        """Counts units of finished work."""
        self.done += units
        self._show()

    def count(
        self, items: Iterable[Item], size: Callable[[Any], int] | None = None
    ) -> Iterator[Item]:
        """Yields items and counts each when the next one is asked for; `size` gives its units."""
        for item in items:
            yield item
            self.advance(size(item) if size else 1)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    @property
    def speed(self) -> float:
        """Units per second; 0 if none is done."""
        return (self.done - self._before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Estimated time for the rest; None if it cannot be known."""
        if self.total is None or not self.speed:
            return None
        return max(self.total - self.done, 0) / self.speed

    def _show(self) -> None:
        if _displays:
            _displays[-1](self)


@contextmanager
def displayed_by(display: Display) -> Iterator[None]:
    """Shows all progress within the block with this display, instead of the one outside."""
    _displays.append(display)
    try:
        yield
    finally:
        _displays.remove(display)
