"""`gptft scale run`: a grid of pre-training runs."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from typer import Argument, Option

from finetune.cli.commands.pretrain import find_corpus
from finetune.cli.console import console, format_count, make_table, print_line, silence_libraries
from finetune.cli.errors import exit_stopped
from finetune.cli.options import collect_overrides, parse_shard

if TYPE_CHECKING:
    from finetune.scaling.cells import Cell
    from finetune.scaling.study import CellResult, StudyEvent
    from finetune.scaling.study_plan import StudyPlan

_TO_DO = "to do"


def run(
    plan: str = Argument(metavar="PLAN", help="A YAML file or a shipped plan (novels)."),
    folder: Path | None = Option(
        None, "--folder", "-o", help="Output directory.", show_default="studies/PLAN"
    ),
    corpus: str | None = Option(None, metavar="FOLDER", help="Texts, or folders train and valid."),
    settings: list[str] = Option(
        [], "--set", metavar="KEY=VALUE ...", help="Set any value, such as train.batch_size=8."
    ),
    only: list[str] = Option(
        [], metavar="CELL ...", help="Only these runs: names, or patterns such as '2x64*'."
    ),
    shard: str = Option("1/1", metavar="I/N", help="Run the I-th of N parts of about equal work."),
    list_cells: bool = Option(False, "--list", help="List all runs with their losses and exit."),
    keep_models: bool = Option(False, "--keep-models", help="Keep the model of every run."),
) -> None:
    """Pre-train a grid of sizes and tokens, for scale fit.

    Example: gptft scale run study.yaml -o studies/novels

    Run the command again to complete an interrupted study: finished runs are kept. For several
    machines give each --shard 1/4, 2/4, ..., then copy the folders of the runs into one.
    """
    from finetune.scaling.study_plan import load_study_plan

    found = find_corpus(corpus) if corpus else {}
    loaded = load_study_plan(plan, collect_overrides(found, settings))
    target = folder or Path("studies", Path(plan).stem)
    options: dict[str, Any] = {"only": only, "shard": parse_shard(shard)}
    if list_cells:
        _list(loaded, target, options)
        return
    silence_libraries()
    _run_cells(loaded, target, {**options, "keep_models": keep_models})
    print_line("losses.csv and a folder for each run are in ", (str(target), "bold"), ". Next:")
    print_line((f"  gptft scale fit {target}", "cyan"))


@dataclass
class _CellState:
    """What the table shows of a run."""

    cell: "Cell"
    state: str = _TO_DO
    loss: str = ""
    seconds: str = ""


def _run_cells(plan: "StudyPlan", folder: Path, options: Mapping[str, Any]) -> None:
    """Shows a live table in a terminal, and in a file a line for each finished run."""
    from finetune.scaling.study import events, list_cells
    from finetune.training.events import Interrupted

    cells = [cell for cell, _, _ in list_cells(plan, folder, options["only"], options["shard"])]
    print_line(f"{format_count(len(cells), 'run')}; encoding the text and measuring the speed")
    out, display = console(), _StudyDisplay(cells)
    live = Live(display.make_table(), console=out, refresh_per_second=4)
    try:
        with live if out.is_terminal else nullcontext():
            for event in events(plan, folder, **options):
                display.add(event, print_finished=not out.is_terminal)
                live.update(display.make_table())
    except Interrupted as stop:
        after = "" if stop.update is None else f" after update {stop.update}"
        message = f"stopped in {stop.folder.name}{after}; run the same command to continue"
        exit_stopped(message, stop.exit_code)


class _StudyDisplay:
    """How far the runs of a study are, from its events."""

    def __init__(self, cells: "Sequence[Cell]") -> None:
        from finetune.cli.run_display import RunProgress

        self._states = {cell.name: _CellState(cell) for cell in cells}
        self._progress, self._current = RunProgress(), ""
        self._notices: set[str] = set()

    def make_table(self) -> Table:
        """A row for each run."""
        rows = (
            [*_describe(item.cell), item.state, item.loss, item.seconds]
            for item in self._states.values()
        )
        return make_table([*_HEADER, "state", "loss", "time"], rows)

    def add(self, event: "StudyEvent", *, print_finished: bool) -> None:
        """Takes an event into account, and prints what is not in the table."""
        from finetune.cli.progress_display import format_time
        from finetune.cli.run_display import RunProgress
        from finetune.scaling.study import CellFailed, TimeEstimate
        from finetune.training.events import CellFinished, CellStarted, Notice
        from finetune.training.loop import Step

        match event:
            case TimeEstimate():
                print_line(
                    f"about {format_time(event.seconds)} for {format_count(event.cells, 'run')}; "
                    f"would end at {_clock_after(event.seconds)}"
                )
            case CellStarted():
                self._progress, self._current = RunProgress(), event.cell.name
                self._states[self._current].state = "preparing"
            case CellFinished():
                result = event.result
                state = self._states[result.cell.name]
                state.state, state.loss = "done", f"{result.loss:.4f}"
                state.seconds = format_time(result.seconds)
                if print_finished:
                    duration = "already done" if event.reused else state.seconds
                    print_line(
                        (f"{event.number:>{len(str(event.cells))}}/{event.cells}  ", "dim"),
                        f"{result.cell.name:<28} loss {state.loss}  {duration}",
                    )
            case CellFailed():
                self._states[event.cell.name].state = "failed"
                print_line((f"{event.cell.name}: ", "red"), str(event.error))
            case Notice():
                if event.text not in self._notices:
                    self._notices.add(event.text)
                    print_line(("note: ", "yellow"), event.text)
            case _:
                self._progress.add(event)
                if isinstance(event, Step):
                    state = self._states[self._current]
                    state.state = f"{self._progress.percent} %"
                    state.seconds = self._progress.time_left


def _clock_after(seconds: float) -> str:
    return time.strftime("%a %H:%M", time.localtime(time.time() + seconds))


_HEADER = ("run", "N", "D", "C", "learning rate")


def _describe(cell: "Cell") -> list[str]:
    parameters, flops = cell.count_parameters(), cell.count_flops()
    return [
        cell.name,
        f"{parameters.blocks:,}",
        f"{cell.tokens:,}",
        f"{flops.total:.3g}",
        f"{cell.plan.train.learning_rate:.3g}",
    ]


def _list(plan: "StudyPlan", folder: Path, options: Mapping[str, Any]) -> None:
    from finetune.scaling.study import list_cells

    cells = list_cells(plan, folder, options["only"], options["shard"])
    rows = ([*_describe(cell), *_state(result, begun)] for cell, result, begun in cells)
    table = make_table([*_HEADER, "state", "loss"], rows)
    table.caption = (
        f"{format_count(len(cells), 'run')}, {_count_work([cell for cell, _, _ in cells]):.3g} "
        "FLOPs. N without embeddings; N, C by the plan's vocabulary"
    )
    table.caption_justify = "left"
    console().print(table)


def _count_work(cells: Sequence["Cell"]) -> float:
    """FLOPs of the updates that are made: a chain shares its constant part."""
    return sum(
        cell.count_flops().total * (1 - cell.parent_updates / cell.updates) for cell in cells
    )


def _state(result: "CellResult | None", begun: bool) -> list[str]:
    if result is None:
        return ["begun" if begun else _TO_DO, ""]
    return ["done", f"{result.loss:.4f}"]
