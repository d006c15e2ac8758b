"""`gptft tune`."""

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from typer import Context, Option

from finetune.cli.console import console, make_table, print_line, silence_libraries
from finetune.cli.errors import exit_stopped
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    RECIPE_FLAGS,
    NumProcesses,
    Overrides,
    TaskName,
    parse_seeds,
    refuse_options,
    with_recipe_flags,
)
from finetune.storage.terminal import escape_controls

if TYPE_CHECKING:
    from finetune.cli.run_display import RunProgress
    from finetune.cli.task_sources import TaskSource
    from finetune.tuning.optuna_study import TrialResult
    from finetune.tuning.study import TrialFinished
    from finetune.tuning.trial import Search

_FLAGS = {key: flag for key, flag in RECIPE_FLAGS.items() if key != "train.seed"}
_LIVE_ROWS, _ROWS = 8, 20
"""Trials in the live table, and in the last one."""


@partial(with_recipe_flags, flags=_FLAGS)
def tune(
    context: Context,
    overrides: Overrides,
    task: TaskName,
    folder: Path | None = Option(
        None, "--folder", "-o", help="Output directory.", show_default="tuning/TASK"
    ),
    ranges: list[str] = Option(
        [], "--range", metavar="KEY=RANGE ...", help="LOW..HIGH, LOW..HIGH:log, or choices: a,b,c."
    ),
    file: Path | None = Option(None, "--ranges", metavar="YAML", help="A file of ranges."),
    trials: int = Option(20, min=1, help="Number of trials, finished ones included."),
    seeds: str | None = Option(
        None, metavar="N-M", help="Random seeds of every trial.", show_default="the recipe's"
    ),
    prune: bool = Option(True, help="Stop trials that are worse than the median."),
    overwrite: bool = Option(False, "--overwrite", help="Overwrite the search."),
    num_processes: NumProcesses = 1,
) -> None:
    """Search for the best settings of a recipe, with Optuna.

    Example: gptft tune --task rte --base gpt2 --range learning_rate=1e-5..5e-4:log epochs=1,2,3

    Run the command again to continue an interrupted search, or with more --trials to extend one.
    """
    from finetune.cli.task_sources import find_task
    from finetune.tuning.ranges import build_space
    from finetune.tuning.study import check_optuna
    from finetune.tuning.trial import Search

    check_optuna()
    seed = overrides.get("train.seed")
    refuse_options({"train.seed": seed}, "has no effect", f"Use --seeds {seed}.")
    source = find_task(task, overrides)
    space = build_space(source.recipe, ranges, file)
    for key in space.keys() & overrides.keys():
        refuse_options({key: "given"}, "has a range and a value", "Leave one of them out.")
    chosen = parse_seeds(seeds) if seeds is not None else [source.recipe.train.seed]
    search = Search(space, tuple(chosen), prune)
    target = folder or Path("tuning", source.name)
    launch_processes(context, num_processes)
    _run(source, target, search, {"trials": trials, "overwrite": overwrite})
    _print_result(source, target, task)


def _run(source: "TaskSource", folder: Path, search: "Search", options: dict[str, Any]) -> None:
    """Shows the best trials and the current one in a terminal, else a line for each trial."""
    silence_libraries()
    from finetune.cli.run_display import RunProgress
    from finetune.training.events import Interrupted, Notice
    from finetune.tuning.optuna_study import sort_trials
    from finetune.tuning.study import TrialFinished, TrialStarted, events

    seeds = f"seed{'' if len(search.seeds) == 1 else 's'} {', '.join(map(str, search.seeds))}"
    out, seen, finished = console(progress=True), set(), []
    out.print(f"Tuning {source.name} from {source.recipe.base.path}", style="bold", soft_wrap=True)
    for key, domain in search.space.items():
        out.print(f"  {key}: {domain}", soft_wrap=True)
    out.print(f"  {options['trials']} trials in {folder}, {seeds}", soft_wrap=True)
    progress, title = RunProgress(), "preparing"
    live = Live(Text(" preparing"), console=out, refresh_per_second=4, transient=True)
    try:
        with live if out.is_terminal else nullcontext():
            for event in events(source.recipe, folder, search, task=source.task, **options):
                match event:
                    case TrialStarted():
                        progress = RunProgress()
                        values = _describe_values(event.values)
                        title = f"trial {event.number} of {event.trials}: {values}"
                    case TrialFinished():
                        finished.append(event.trial)
                        if not out.is_terminal:
                            out.print(_describe_trial(event, options["trials"]), soft_wrap=True)
                    case Notice():
                        if event.text not in seen:  # Most are the same for every trial.
                            seen.add(event.text)
                            note = Text.assemble(("note: ", "yellow"), escape_controls(event.text))
                            out.print(note, soft_wrap=True)
                    case _:
                        progress.add(event)
                if out.is_terminal and progress.is_due(live=True):
                    best = sort_trials(finished)[:_LIVE_ROWS]
                    live.update(Group(*_tables(best), _describe_progress(title, progress)))
    except Interrupted as stop:
        exit_stopped("stopped; run the same command to continue", stop.exit_code)


def _tables(trials: "Sequence[TrialResult]") -> list[Table]:
    """The table of some trials; no table without any."""
    from finetune.cli.progress_display import format_time

    if not trials:
        return []
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.scores))
    rows = [
        [
            str(trial.number),
            *(_format(trial.values.get(key)) for key in keys),
            *(f"{trial.scores[name]:.4f}" if name in trial.scores else "" for name in metrics),
            _describe_state(trial),
            format_time(trial.seconds),
        ]
        for trial in trials
    ]
    names = [key.removeprefix("train.") for key in keys]
    return [make_table(["trial", *names, *metrics, "", "time"], rows)]


def _describe_progress(title: str, progress: "RunProgress") -> Text:
    from finetune.cli.run_display import format_scores

    best = f"  best {format_scores(progress.best.scores)}" if progress.best else ""
    update = f"update {progress.update}/{progress.updates}" if progress.updates else ""
    return Text(f"{title}  {update}{best}".rstrip())


def _describe_trial(event: "TrialFinished", trials: int) -> Text:
    from finetune.cli.progress_display import format_time
    from finetune.cli.run_display import format_scores

    trial, width = event.trial, len(str(trials))
    is_best = event.best is not None and event.best.number == trial.number
    return Text.assemble(
        (f"{trial.number:>{width}}/{trials}  ", "dim"),
        f"{_describe_values(trial.values)}  ",
        (format_scores(trial.scores), "green"),
        (f"  {_describe_state(trial)}", "yellow"),
        (f"  {format_time(trial.seconds)}", "dim"),
        ("  best so far" if is_best else "", "bold green"),
    )


def _describe_state(trial: "TrialResult") -> str:
    return f"failed: {trial.reason}" if trial.reason else trial.state


def _describe_values(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{key.removeprefix('train.')}={_format(v)}" for key, v in values.items())


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _as_text(value)


def _as_text(value: Any) -> str:
    """A value as --set reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def _print_result(source: "TaskSource", folder: Path, task: str) -> None:
    """Prints the best trials, and how to train with the values of the best one."""
    from finetune.cli.run_display import format_scores
    from finetune.tuning.optuna_study import BEST, TABLE
    from finetune.tuning.study import read_trials

    trials = read_trials(source.recipe, folder)
    for table in _tables(trials[:_ROWS]):
        console().print(table)
    if len(trials) > _ROWS:
        print_line((f"The best {_ROWS} of {len(trials)} trials; all are in {TABLE}.", "dim"))
    best = trials[0]
    if best.state != "finished":
        print_line(("No trial has finished.", "yellow"))
        return
    name = shlex.quote(str(folder / BEST))
    if source.task is None:
        command = f"gptft train --task {name}"
    else:  # A recipe cannot hold the code of a task.
        settings = chain.from_iterable(
            ("--set", f"{k}={_as_text(best.values[k])}") for k in best.values
        )
        command = shlex.join(["gptft", "train", "--task", task, *settings])
    print_line(f"Best: trial {best.number}, {format_scores(best.scores)}. Train with it:")
    print_line((f"  {command}", "cyan"))
    print_line(
        (
            f"It is the best of {len(trials)} on the evaluation split, so its score there is "
            "optimistic: report one on rows that were not used here.",
            "dim",
        )
    )
