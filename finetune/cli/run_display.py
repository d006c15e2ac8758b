"""Displays a run: a live display in a terminal, plain lines in a file or a pipe."""

import shlex
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from math import isfinite
from statistics import mean
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune.checkpointing.model_folder import read_calibration
from finetune.checkpointing.run_folder import MODEL
from finetune.cli.console import console, format_bytes, format_count, make_table, print_line
from finetune.cli.errors import exit_stopped
from finetune.cli.progress_display import LiveProgress, PrintedProgress, format_time
from finetune.evaluation.majority import describe_majority
from finetune.evaluation.metrics import METRICS
from finetune.models.losses import Losses
from finetune.progress import displayed_by
from finetune.storage.terminal import escape_controls
from finetune.training.estimate import used_memory
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
from task_formats import Labels

_SPEED_UPDATES = 100
"""The last updates, which give the speed."""
_SMOOTHED_UPDATES = 20
"""The last updates, whose mean losses are shown."""
_REDRAW_SECONDS = 0.25
_MIN_LINE_SECONDS, _MAX_LINE_SECONDS = 2.0, 30.0
"""Time between two plain lines."""


Clock = Callable[[], float]


class MeanLosses(NamedTuple):
    """Losses as numbers, named as in `finetune.models.losses.Losses`."""

    total: float
    task: float
    lm: float


class RunProgress:
    """How far a run is, from its events. The time of evaluations does not count as training."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.update, self.updates, self.updates_per_epoch = 0, 0, 0
        """Completed and planned updates."""
        self.device = "cpu"
        self.best: Evaluated | None = None
        self._start = self._last_event = self._last_shown = clock()
        self._losses: deque[Losses | MeanLosses] = deque(maxlen=_SMOOTHED_UPDATES)
        self._last_tenth = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_SPEED_UPDATES)
        """Seconds and tokens of the last updates."""

    def add(self, event: Event) -> None:
        """Takes an event into account."""
        now = self.clock()
        match event:
            case Started():
                self.update, self.updates = event.done, event.updates
                self.updates_per_epoch, self.device = event.updates_per_epoch, event.device
                self._start = now
            case Step():
                self.update = event.number
                self._losses.append(event.losses)
                self._recent.append((now - self._last_event, event.tokens))
            case Evaluated():
                self.best = event if event.best else self.best
            case _:
                return
        self._last_event = now

    def is_due(self, *, live: bool) -> bool:
        """Whether to show this update: reading its losses waits for the device.

        A live display is drawn four times a second. A plain line comes after each tenth of the
        run and after 30 seconds. Both show the last update.
        """
        now, tenth = self.clock(), self.percent // 10
        waited = now - self._last_shown
        new_line = tenth > self._last_tenth or waited >= _MAX_LINE_SECONDS
        due = waited >= _REDRAW_SECONDS if live else waited >= _MIN_LINE_SECONDS and new_line
        if not due and self.update < self.updates:
            return False
        self._last_shown, self._last_tenth = now, tenth
        return True

    @property
    def percent(self) -> int:
        """Completed updates in percent."""
        return 100 * self.update // max(self.updates, 1)

    @property
    def speed(self) -> str:
        """Tokens per second in the last updates, of all processes together."""
        seconds, tokens = map(sum, zip(*self._recent, strict=True))
        return f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"

    @property
    def epoch(self) -> str:
        """Epochs that are done, with a fraction."""
        return f"epoch {self.update / max(self.updates_per_epoch, 1):.2f}"

    @property
    def memory(self) -> str:
        """Memory in use: of a GPU, or of this process; empty where the system does not tell."""
        used = used_memory(self.device)
        return "" if used is None else format_bytes(used)

    @property
    def elapsed(self) -> str:
        """Time since the first update of this session."""
        return f"{format_time(self.clock() - self._start)} elapsed"

    def mean_losses(self) -> MeanLosses:
        """Means over the last updates. Reading the newest losses waits for the device."""
        read = [MeanLosses(*map(float, losses)) for losses in self._losses]
        self._losses.clear()
        self._losses.extend(read)
        return MeanLosses(*map(mean, zip(*read, strict=True)))

    @property
    def time_left(self) -> str:
        """Estimated time for the remaining updates."""
        seconds = mean(seconds for seconds, _ in self._recent)
        return f"{format_time((self.updates - self.update) * seconds)} left"


def display_run(
    events: Iterable[Event], title: str, out: Console | None = None, clock: Clock = time.monotonic
) -> Result | None:
    """Displays events as they come, live in a terminal; returns the result, if the run finishes.

    Raises:
        typer.Exit: A signal stopped the run; the exit code is 128 plus its number.
    """
    out = out or console(progress=True)
    progress = RunProgress(clock)
    spinner = Spinner("dots", Text(" preparing"), style="cyan")
    live = Live(spinner, console=out, refresh_per_second=8, transient=True)
    try:
        with (
            live if out.is_terminal else nullcontext(),
            displayed_by(LiveProgress(live) if out.is_terminal else PrintedProgress(out)),
        ):
            for event in events:
                progress.add(event)
                match event:
                    case Started():
                        out.print(_describe_start(event, title))
                    case Step() if progress.is_due(live=out.is_terminal):
                        if out.is_terminal:
                            live.update(_draw(progress, event))
                        else:
                            out.print(_describe_step(progress, event), soft_wrap=True)
                    case Evaluated():
                        out.print(_describe_evaluation(event, progress), soft_wrap=True)
                    case Notice():
                        note = Text.assemble(("note: ", "yellow"), escape_controls(event.text))
                        out.print(note, soft_wrap=True)
                    case Finished():
                        return event.result
    except Interrupted as stop:
        exit_stopped(str(stop), stop.exit_code)
    return None


def _describe_step(progress: RunProgress, step: Step) -> Text:
    update = f"{progress.update:>{len(str(progress.updates))}}"
    count = f"update {update}/{progress.updates} {progress.percent:>3}%"
    noise = ""
    if step.group_norms is not None:
        scale = step.noise_scale
        noise = "noise scale " + ("not yet known" if scale is None else f"{scale.value:.3g}")
    losses = format_losses(progress.mean_losses(), step.learning_rate)
    parts = (count, progress.epoch, losses, noise, progress.speed, progress.memory)
    return Text("  ".join(filter(None, (*parts, progress.elapsed, progress.time_left))))


def _draw(progress: RunProgress, step: Step) -> Group:
    """The line of the update, the best scores, and a progress bar."""
    text = _describe_step(progress, step)
    if best := progress.best:
        text.append(f"\nbest {format_scores(best.scores)}  at update {best.update}", "green")
    return Group(text, ProgressBar(progress.updates, progress.update, complete_style="cyan"))


def _describe_start(event: Started, title: str) -> Text:
    """Title, model and data of a run that starts."""
    processes = f", {event.processes} processes" if event.processes > 1 else ""
    evaluated = event.evaluation_examples
    text = (
        f"\n  {event.parameters:,} parameters, {event.precision} on {event.device}{processes}, "
        f"{event.layout} layout\n  {format_count(event.examples, 'example')}, "
        f"{format_count(event.updates, 'update')}, "
        + (f"evaluated on {evaluated:,}" if evaluated else "no evaluation")
    )
    if event.done:
        text += f"\n  resuming after update {event.done:,}"
    if event.truncation_warning:
        text += f"\n  warning: {event.truncation_warning}"
    elif event.truncated_tokens:
        removed = format_count(event.truncated_tokens, "token")
        text += f"\n  {removed} removed from long texts (see --max-tokens)"
    if event.skipped_rows:
        text += f"\n  {format_count(event.skipped_rows, 'bad row')} skipped"
    return Text.assemble((title, "bold"), text)


def _describe_evaluation(event: Evaluated, progress: RunProgress) -> Text:
    update = f"{event.update:>{len(str(progress.updates))}}"
    where = f"epoch {event.epoch:.4g}  update {update}  "
    best = ("  best so far", "bold green") if event.best else ("", "")
    return Text.assemble((where, "dim"), format_scores(event.scores), best)


def format_losses(losses: MeanLosses, learning_rate: float) -> str:
    """The losses and the learning rate; parts of the loss only where they differ from it."""
    parts = [f"loss {losses.total:.4f}"]
    if losses.total != losses.task:
        parts.append(f"task {losses.task:.4f}")
        parts += [f"lm {losses.lm:.4f}"] if losses.lm else []
    return "  ".join([*parts, f"lr {learning_rate:.2e}"])


def format_scores(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


def print_result(result: Result, labels: Labels) -> None:
    """Prints the scores of a finished run and the next commands."""
    baseline = describe_majority(labels)
    updates, tokens = format_count(result.updates, "update"), format_count(result.tokens, "token")
    print_line(f"Trained {updates}, {tokens}, in {format_time(result.seconds)}.")
    if result.scores:
        console().print(
            make_score_table(result.scores, majority=result.majority, majority_name=baseline.name)
        )
        for split, scores in result.scores.items():
            name, value = next(iter(scores.items()))
            reached = result.majority.get(split, {}).get(name)
            sign = 1 if METRICS[name].higher_is_better else -1
            if reached is not None and sign * (value - reached) <= 0:
                warning = f"{name} on {split} is no better than {baseline.answer}."
                print_line((warning, "yellow"))
    print_line((f"Best checkpoint: update {result.update:,}.", "dim"))
    if (calibration := read_calibration(result.folder / MODEL)) is not None:
        before, after = f"{calibration.error:.3f}", f"{calibration.calibrated_error:.3f}"
        text = f"Calibration error {before}, or {after} with gptft predict --calibrated."
        print_line((text, "dim"))
    print_noise_scale(result, "example")
    folder = shlex.quote(str(result.folder))
    print_line("The run is in ", (str(result.folder), "bold"), ". Next:")
    print_line((f"  gptft evaluate {folder} --split NAME", "cyan"), "  evaluate on another split")
    print_line((f"  gptft predict {folder} FILE -o OUT  ", "cyan"), "  label the rows of a file")


def print_noise_scale(result: Result, unit: str) -> None:
    """Prints the gradient noise scale of a run, if it is known. The unit is one of its batch."""
    if result.noise_scale is None:
        return
    value, low, high = (f"{number:,.0f}" for number in result.noise_scale)
    ends = f"{low} to {high}" if isfinite(result.noise_scale.high) else f"{low} or more"
    print_line(f"Gradient noise scale: {value} {unit}s (95 % interval {ends}).")
    command = f"gptft scale noise {shlex.quote(str(result.folder))}"
    print_line((f"  {command}", "cyan"), "  what other batch sizes would cost")


def make_score_table(
    scores: Mapping[str, Mapping[str, float]],
    counts: Mapping[str, int] | None = None,
    majority: Mapping[str, Mapping[str, float]] = {},
    majority_name: str = "majority class",
) -> Table:
    """A row for each split and its majority baseline, a column for each metric.

    With `counts` there is a column for the number of rows.
    """
    metrics = list(dict.fromkeys(name for row in scores.values() for name in row))
    rows = []
    for split, row in scores.items():
        count = [f"{counts[split]:,}"] if counts else []
        rows.append([split, *count, *_format_row(row, metrics)])
        if baseline := majority.get(split):
            indent = [""] if counts else []
            rows.append([f"  {majority_name}", *indent, *_format_row(baseline, metrics)])
    return make_table(["split", *(["rows"] if counts else []), *metrics], rows)


def _format_row(scores: Mapping[str, float], metrics: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.4f}" if name in scores else "" for name in metrics]
