"""Displays a run: a live display in a terminal, plain lines in a file or a pipe."""

import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune.cli.console import console, format_count
from finetune.cli.errors import exit_stopped
from finetune.training.events import (
    Evaluated,
    Event,
    Finished,
    Interrupted,
    Notice,
    Result,
    Started,
)
from finetune.training.loop import Step

_SPEED_SECONDS = 30.0
"""Updates of this time give the speed."""
_REDRAW_SECONDS = 0.25
_MIN_LINE_SECONDS, _MAX_LINE_SECONDS = 2.0, 30.0
"""Time between two plain lines."""

Clock = Callable[[], float]


class RunProgress:
    """How far a run is, from its events. The time of evaluations does not count as training."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.update, self.updates = 0, 0
        """Completed and planned updates."""
        self.best: Evaluated | None = None
        self._last_time = clock()
        self._recent: deque[tuple[float, int]] = deque()
        self._seconds, self._tokens = 0.0, 0
        """Seconds and tokens of recent updates, one by one and together."""

    def add(self, event: Event) -> None:
        """Takes an event into account."""
        now = self.clock()
        match event:
            case Started():
                self.update, self.updates = event.done, event.updates
            case Step():
                self.update = event.number
                self._recent.append((now - self._last_time, event.tokens))
                self._seconds += now - self._last_time
                self._tokens += event.tokens
                while len(self._recent) > 1 and self._seconds > _SPEED_SECONDS:
                    seconds, tokens = self._recent.popleft()
                    self._seconds, self._tokens = self._seconds - seconds, self._tokens - tokens
            case Evaluated():
                self.best = event if event.best else self.best
            case _:
                return
        self._last_time = now

    @property
    def percent(self) -> int:
        """Completed updates in percent."""
        return 100 * self.update // max(self.updates, 1)

    @property
    def speed(self) -> str:
        """Tokens per second in recent updates, of all processes together."""
        return f"{self._tokens / max(self._seconds, 1e-9):,.0f} tokens/s"

    @property
    def time_left(self) -> str:
        """Estimated time for the remaining updates."""
        if not self._recent:
            return "-:-- left"
        seconds = (self.updates - self.update) * self._seconds / len(self._recent)
        return f"{format_time(seconds)} left"


def display_run(events: Iterable[Event], title: str) -> Result | None:
    """Displays a run and returns its result; None if it was stopped before the end.

    Raises:
        typer.Exit: A signal stopped the run; the exit code is 128 plus its number.
    """
    try:
        return display_events(events, title, console())
    except Interrupted as stop:
        exit_stopped(str(stop), stop.exit_code)


def display_events(
    events: Iterable[Event], title: str, out: Console, clock: Clock = time.monotonic
) -> Result | None:
    """Displays events as they come, live in a terminal; returns the result, if the run finishes."""
    progress = RunProgress(clock)
    ready = Spinner("dots", Text(" preparing"), style="cyan")
    live = Live(ready, console=out, refresh_per_second=8, transient=True)
    display = LiveDisplay(live, clock) if out.is_terminal else PlainDisplay(out, clock)
    with live if out.is_terminal else nullcontext():
        for event in events:
            progress.add(event)
            match event:
                case Started():
                    out.print(_describe_start(event, title))
                case Step():
                    display.refresh(progress, event)
                case Evaluated():
                    out.print(_describe_evaluation(event, progress), soft_wrap=True)
                case Notice():
                    out.print(make_note(event.text), soft_wrap=True)
                case Finished():
                    return event.result
    return None


class PlainDisplay:
    """Prints a line after every tenth of the run, after 30 seconds, and at the end."""

    def __init__(self, out: Console, clock: Clock) -> None:
        self.out, self.clock = out, clock
        self._last_time, self._tenth = clock(), 0

    def refresh(self, progress: RunProgress, step: Step) -> None:
        """Prints a line if one is due."""
        tenth = progress.percent // 10
        waited = self.clock() - self._last_time
        due = waited >= _MIN_LINE_SECONDS and (tenth > self._tenth or waited >= _MAX_LINE_SECONDS)
        if due or progress.update == progress.updates:
            self._last_time, self._tenth = self.clock(), tenth
            update = f"{progress.update:>{len(str(progress.updates))}}"
            count = f"update {update}/{progress.updates} {progress.percent:>3}%"
            parts = (count, format_losses(step), progress.speed, progress.time_left)
            self.out.print(Text("  ".join(parts)), soft_wrap=True)


class LiveDisplay:
    """Draws a progress bar, the losses and the best scores at the bottom of the screen."""

    def __init__(self, live: Live, clock: Clock) -> None:
        self.live, self.clock = live, clock
        self._last_time = -_REDRAW_SECONDS
        self._spinner = Spinner("dots", style="cyan")

    def refresh(self, progress: RunProgress, step: Step) -> None:
        """Redraws at most four times a second: reading a loss waits for the device."""
        update, updates = progress.update, progress.updates
        if self.clock() - self._last_time < _REDRAW_SECONDS and update != updates:
            return
        self._last_time = self.clock()
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, None, 1, None, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        bar.add_row(
            self._spinner,
            Text(f"update {update}/{updates}"),
            ProgressBar(updates, update, complete_style="cyan", finished_style="green"),
            Text(f"{progress.percent:>3}%"),
            Text(progress.time_left, "cyan"),
        )
        lines = [Text(f"  {format_losses(step)}  {progress.speed}")]
        if progress.best is not None:
            scores = format_scores(progress.best.scores)
            lines.append(Text(f"  best {scores}  at update {progress.best.update}", "green"))
        self.live.update(Group(bar, *lines))


def _describe_start(event: Started, title: str) -> Text:
    """Title, model and data of a run that starts."""
    model = f"{event.parameters:,} parameters, {event.precision} on {event.device}"
    if event.processes > 1:
        model += f", {event.processes} processes"
    model += f", {event.layout} layout"
    data = f"{format_count(event.examples, 'example')}, {format_count(event.updates, 'update')}"
    evaluated = event.evaluation_examples
    data += f", evaluated on {evaluated:,}" if evaluated else ", no evaluation"
    lines = [model, data]
    if event.done:
        lines.append(f"resuming after update {event.done:,}")
    if event.truncated_tokens:
        removed = format_count(event.truncated_tokens, "token")
        lines.append(f"{removed} removed from long texts (see --max-tokens)")
    if event.skipped_rows:
        lines.append(f"{format_count(event.skipped_rows, 'bad row')} skipped")
    return Text.assemble((title, "bold"), *("\n  " + line for line in lines))


def _describe_evaluation(event: Evaluated, progress: RunProgress) -> Text:
    update = f"{event.update:>{len(str(progress.updates))}}"
    where = f"epoch {event.epoch:.4g}  update {update}  "
    best = ("  best so far", "bold green") if event.best else ("", "")
    return Text.assemble((where, "dim"), format_scores(event.scores), best)


def make_note(text: str) -> Text:
    """A line for a notice of a run."""
    return Text.assemble(("note: ", "yellow"), text)


def format_losses(step: Step) -> str:
    """The losses and the learning rate of a step. Reading the losses waits for the device."""
    total, task, lm = (float(loss) for loss in step.losses)
    parts = [f"loss {total:.4f}", f"task {task:.4f}"]
    parts += [f"lm {lm:.4f}"] if total != task else []
    return "  ".join([*parts, f"lr {step.learning_rate:.2e}"])


def format_scores(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def format_time(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any.

    >>> format_time(83.2), format_time(3600 * 5 + 62)
    ('1:23', '5:01:02')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def print_result(result: Result, out: Console | None = None) -> None:
    """Prints the scores of a finished run and the next commands."""
    out = out or console()
    updates, tokens = format_count(result.updates, "update"), format_count(result.tokens, "token")
    out.print(Text(f"Trained {updates}, {tokens}, in {format_time(result.seconds)}."))
    if result.scores:
        out.print(make_score_table(result.scores))
        out.print(Text(f"Best checkpoint: update {result.update:,}.", "dim"))
    out.print(_describe_next_commands(result.folder), soft_wrap=True)


def make_score_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each split, a column for each metric."""
    metrics = list(dict.fromkeys(name for row in scores.values() for name in row))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("split", style="cyan")
    for metric in metrics:
        table.add_column(Text(metric), justify="right")
    for split, row in scores.items():
        cells = (f"{row[name]:.4f}" if name in row else "" for name in metrics)
        table.add_row(Text(split), *cells)
    return table


def _describe_next_commands(folder: Path) -> Text:
    name = shlex.quote(str(folder))
    commands = {
        f"gptft evaluate {name} --split NAME": "evaluate on another split",
        f"gptft predict {name} FILE -o OUT": "label the rows of a file",
    }
    width = max(map(len, commands))
    text = Text.assemble("The run is in ", (str(folder), "bold"), ". Next:")
    for command, purpose in commands.items():
        text.append(f"\n  {command:<{width}}  ", "cyan").append(purpose)
    return text
