"""Displays progress: a bar in a terminal, a line every ten seconds in a file or a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from finetune.cli.console import console, get_rank
from finetune.progress import Progress, displayed_by

LINE_SECONDS = 10.0
"""Time between two lines."""
_REDRAW_SECONDS = 0.1


@contextmanager
def show_progress(waiting: str = "") -> Iterator[None]:
    """Displays all progress of the block on standard error; only the first process does.

    A terminal shows the text `waiting` while there is no progress.
    """
    out = console(stderr=True, progress=True)
    spinner = Spinner("dots", Text(f" {waiting}")) if waiting else ""
    if get_rank() > 0:
        yield
    elif out.is_terminal:
        with (
            Live(spinner, console=out, refresh_per_second=8, transient=True) as live,
            displayed_by(LiveProgress(live)),
        ):
            yield
    else:
        with displayed_by(PrintedProgress(out)):
            yield


class LiveProgress:
    """Draws progress in a live display, instead of what else it shows."""

    def __init__(self, live: Live) -> None:
        self._live, self._last_drawn = live, time.monotonic()
        self._shown: Progress | None = None
        self._before: RenderableType = ""

    def __call__(self, progress: Progress) -> None:
        """Draws it, at most ten times a second."""
        now = time.monotonic()
        if progress.is_finished:
            if self._shown is not None:
                self._live.update(self._before)
            self._shown = None
        elif now - self._last_drawn >= _REDRAW_SECONDS:
            if self._shown is None:
                self._before = self._live.get_renderable()
            self._last_drawn, self._shown = now, progress
            self._live.update(draw_progress(progress))


class PrintedProgress:
    """Prints progress that takes longer than ten seconds, line by line."""

    def __init__(self, out: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock, self._last = out, clock, clock()
        self._printed: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Prints a line if the last one is ten seconds old, and one at the end."""
        is_last = progress.is_finished and progress is self._printed
        if is_last or self._clock() - self._last >= LINE_SECONDS:
            self._last, self._printed = self._clock(), progress
            self._out.print(Text(describe_progress(progress)), soft_wrap=True)


def draw_progress(progress: Progress) -> Group:
    """The line of some progress above a bar."""
    bar = ProgressBar(progress.total, progress.done, complete_style="cyan")
    return Group(Text(describe_progress(progress)), *([bar] if progress.total else []))


def describe_progress(progress: Progress) -> str:
    """Count, percent, speed and time left in one line."""
    total, unit = progress.total, progress.unit
    count = _format_units(progress.done, unit)
    if total:
        # An estimated total may be too low.
        most = _format_units(max(total, progress.done), unit)
        count = f"{count.split()[0]} of {most}  {min(100 * progress.done // total, 100)}%"
    parts = [f"{progress.description} {count}"]
    if progress.speed:
        parts.append(f"{_format_units(progress.speed, unit)}/s")
    if progress.seconds_left is not None and not progress.is_finished:
        parts.append(f"{format_time(progress.seconds_left)} left")
    elif progress.is_finished:
        parts.append(f"in {format_time(progress.seconds)}")
    return "  ".join(parts)


def _format_units(number: float, unit: str) -> str:
    if unit == "byte":
        return f"{number / 1e6:,.1f} MB"
    shown = f"{number:,.1f}" if number < 10 and number != int(number) else f"{number:,.0f}"
    return f"{shown} {unit}{'' if shown == '1' else 's'}"


def format_time(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
