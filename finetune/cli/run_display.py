"""A run on the screen while it happens: live on a terminal, plain lines anywhere else."""

import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune.cli.run_status import Standing, say_losses, say_scores, say_time
from finetune.training.events import Evaluated, Event, Finished, Notice, Result, Started
from finetune.training.loop import Step

_LIVE_SECONDS = 0.25
_FEWEST_SECONDS, _MOST_SECONDS = 2.0, 30.0
"""Between two plain lines."""


class RunView(Protocol):
    """What shows the state of a run between the lines that stay."""

    def __enter__(self) -> "RunView": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def refresh(self, standing: Standing) -> None:
        """A step has been made; show it where it is time to."""
        ...


def follow(
    events: Iterable[Event],
    about: str,
    out: Console,
    clock: Callable[[], float] = time.monotonic,
) -> Result | None:
    """Shows a run to its end and gives its result, or None where it was stopped before."""
    standing = Standing(clock)
    view: RunView = LiveView(out, clock) if out.is_terminal else PlainView(out, clock)
    with view:
        for event in events:
            match event:
                case Started():
                    standing.start(event)
                    out.print(_introduce(event, about))
                case Step():
                    standing.take(event)
                    view.refresh(standing)
                case Evaluated():
                    standing.evaluate(event)
                    out.print(_score_line(event, standing), soft_wrap=True)
                case Notice():
                    out.print(Text.assemble(("note: ", "yellow"), event.text), soft_wrap=True)
                case Finished():
                    return event.result
    return None


class PlainView:
    """A line every tenth of the run, every half minute, and at the end."""

    def __init__(self, out: Console, clock: Callable[[], float]) -> None:
        self.out, self.clock = out, clock
        self._then, self._tenth = clock(), 0

    def __enter__(self) -> "PlainView":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def refresh(self, standing: Standing) -> None:
        """Prints a line where one is due."""
        tenth = 10 * standing.update // max(standing.updates, 1)
        waited = self.clock() - self._then
        over = waited >= _FEWEST_SECONDS and (tenth > self._tenth or waited >= _MOST_SECONDS)
        if standing.step is None or not (over or standing.update == standing.updates):
            return
        self._then, self._tenth = self.clock(), tenth
        parts = (_count(standing), say_losses(standing.step), _speed(standing))
        self.out.print(Text("  ".join(parts)), soft_wrap=True)


class LiveView:
    """A bar, the losses and the best score, four times a second at the bottom of the screen."""

    def __init__(self, out: Console, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._then = -_LIVE_SECONDS
        self._spinner = Spinner("dots", style="cyan")
        ready = Spinner("dots", Text(" getting ready"), style="cyan")
        self._live = Live(ready, console=out, refresh_per_second=8, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def refresh(self, standing: Standing) -> None:
        """Draws anew where the last drawing is old enough: reading a loss waits for the device."""
        last = standing.update == standing.updates
        if self.clock() - self._then < _LIVE_SECONDS and not last:
            return
        self._then = self.clock()
        self._live.update(self._draw(standing))

    def _draw(self, standing: Standing) -> Group:
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, None, 1, None, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        done, whole = standing.update, standing.updates
        left = Text(f"{say_time(standing.seconds_left)} left", "cyan")
        percent = Text(f"{100 * done // max(whole, 1):>3}%")
        bar.add_row(
            self._spinner,
            Text(f"update {done}/{whole}"),
            ProgressBar(whole, done, complete_style="cyan", finished_style="green"),
            percent,
            left,
        )
        lines: list[Text] = []
        if standing.step is not None:
            words = f"  {say_losses(standing.step)}  {standing.tokens_per_second:,.0f} tokens/s"
            lines.append(Text(words))
        if standing.best is not None:
            best = f"  best {say_scores(standing.best.scores)}  at update {standing.best.update}"
            lines.append(Text(best, "green"))
        return Group(bar, *lines)


def _introduce(event: Started, about: str) -> Text:
    """What is about to happen, in two or three lines."""
    how = f"{event.parameters:,} parameters, {event.precision} on {event.device}"
    if event.processes > 1:
        how += f", {event.processes} processes"
    what = f"{event.examples:,} examples, {event.updates:,} updates"
    what += f", evaluated on {event.evaluated:,}" if event.evaluated else ", no evaluation"
    lines = [how + f", {event.layout} rows", what]
    if event.done:
        lines.append(f"going on after update {event.done:,}")
    if event.cut:
        lines.append(f"{event.cut:,} tokens of long texts are cut (see --max-tokens)")
    if event.skipped:
        lines.append(f"{event.skipped:,} bad rows are left out")
    return Text.assemble((about, "bold"), *("\n  " + line for line in lines))


def _score_line(event: Evaluated, standing: Standing) -> Text:
    width = len(f"{standing.updates}")
    mark = ("  best so far", "bold green") if event.best else ("", "")
    where = f"epoch {event.epoch:.4g}  update {event.update:>{width}}  "
    return Text.assemble((where, "dim"), say_scores(event.scores), mark)


def _count(standing: Standing) -> str:
    percent = 100 * standing.update // max(standing.updates, 1)
    width = len(f"{standing.updates}")
    return f"update {standing.update:>{width}}/{standing.updates} {percent:>3}%"


def _speed(standing: Standing) -> str:
    left = say_time(standing.seconds_left)
    return f"{standing.tokens_per_second:,.0f} tokens/s  {left} left"


def conclude(result: Result, out: Console) -> None:
    """The scores of a finished run as a table, and what to type next."""
    minutes = say_time(result.seconds)
    out.print(
        Text(f"Trained {result.updates:,} updates, {result.tokens:,} tokens, in {minutes}."),
        soft_wrap=True,
    )
    if result.scores:
        out.print(score_table(result.scores))
        out.print(Text(f"The best state is that of update {result.update:,}.", "dim"))
    out.print(next_commands(result.folder), soft_wrap=True)


def score_table(scores: dict[str, dict[str, float]]) -> Table:
    """A row per split, a column per metric."""
    metrics = list(dict.fromkeys(name for row in scores.values() for name in row))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("split", style="cyan")
    for metric in metrics:
        table.add_column(Text(metric), justify="right")
    for split, row in scores.items():
        cells = (f"{row[name]:.4f}" if name in row else "" for name in metrics)
        table.add_row(Text(split), *cells)
    return table


def next_commands(folder: Path) -> Text:
    """The commands that make use of a run."""
    name = shlex.quote(str(folder))
    commands = {
        f"gptft evaluate {name} --split NAME": "score it on another split",
        f"gptft predict {name} FILE -o OUT": "label rows of your own",
    }
    width = max(map(len, commands))
    text = Text.assemble("The run is in ", (str(folder), "bold"), ". Next:")
    for command, what in commands.items():
        text.append(f"\n  {command:<{width}}  ", "cyan").append(what)
    return text
