"""`gptft compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from typer import Argument, Context, Option

from finetune.cli.commands.evaluate import load_predictor
from finetune.cli.commands.report import check_tasks, evaluate_with_status
from finetune.cli.console import (
    console,
    format_count,
    get_rank,
    make_table,
    print_line,
    show_status,
    silence_libraries,
)
from finetune.cli.errors import exit_stopped
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    RECIPE_FLAGS,
    NumProcesses,
    Overrides,
    TaskName,
    collect_overrides,
    parse_seeds,
    refuse_options,
    with_recipe_flags,
)
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.cli.task_sources import TaskSource
    from finetune.comparison import Design
    from finetune.reports.analysis import Comparison

_FLAGS = {key: flag for key, flag in RECIPE_FLAGS.items() if key != "train.seed"}


@partial(with_recipe_flags, flags=_FLAGS)
def compare(
    context: Context,
    overrides: Overrides,
    runs: list[Path] | None = Argument(
        None, metavar="[RUN RUN ...]", help="Finished runs of one task, to be tested."
    ),
    task: TaskName | None = None,
    folder: Path | None = Option(
        None, "--folder", "-o", help="Output directory.", show_default="studies/TASK"
    ),
    seeds: str = Option("0-4", metavar="N-M", help="Random seeds, such as 0-4 or 0,7."),
    shots: list[int] | None = Option(
        None, min=0, metavar="K ...", help="Numbers of demonstrations.", show_default="0 4 32"
    ),
    no_shots: bool = Option(False, "--no-shots", help="Skip prompting."),
    fractions: list[float] = Option(
        [], metavar="F ...", help="Fractions of the training rows, for a learning curve."
    ),
    scratch: list[str] = Option(
        [], metavar="KEY=VALUE ...", help="Recipe value only for runs from scratch."
    ),
    only: list[str] = Option(
        [], metavar="CELL ...", help="Only these cells: names, or patterns such as 'scratch*'."
    ),
    list_cells: bool = Option(False, "--list", help="List all cells with their scores and exit."),
    keep_models: bool = Option(False, "--keep-models", help="Keep the best model of each cell."),
    overwrite: bool = Option(False, "--overwrite", help="Overwrite the results of the cells."),
    plot: bool = Option(True, help="Plot the learning curve of --fractions."),
    split: str | None = Option(
        None, help="With runs: a split or a file.", show_default="the evaluation split"
    ),
    figure: Path | None = Option(
        None,
        metavar="FILE",
        help="File of the learning curve: .png, .svg or .pdf.",
        show_default="curve.png in the output directory",
    ),
    num_processes: NumProcesses = 1,
) -> None:
    """Compare finished runs, or prompting, training from scratch and fine-tuning.

    Example: gptft compare runs/rte runs/rte-large

    Runs are compared on the rows that all of them were evaluated on, with a paired bootstrap and
    McNemar's test.

    Example: gptft compare --task rte --base tiny --seeds 0-4 --shots 0 4 32

    Run the command again to complete an interrupted comparison: finished cells are kept.
    """
    if runs:
        others: dict[str, object] = {"--task": task, "--folder": folder, "--shots": shots}
        others |= {"--fractions": fractions, "--scratch": scratch, "--no-shots": no_shots}
        others |= {"--only": only, "--list": list_cells, "--overwrite": overwrite}
        others |= {"--keep-models": keep_models}
        cure = "Leave it out, or use --task without runs."
        refuse_options(others, "has no effect on finished runs", cure)
        compare_finished(runs, split, overrides)
        return
    if task is None:
        cure = "gptft compare RUN RUN, or gptft compare --task TASK."
        raise UsageError("nothing to compare", cure=cure)
    refuse_options({"--split": split}, "is for finished runs", "Set data.evaluate with --set.")
    from finetune.cli.task_sources import find_task
    from finetune.comparison import Design

    if no_shots:
        refuse_options({"--shots": shots}, "and --no-shots exclude each other", "Give one.")
    if list_cells:
        changing = {"--overwrite": overwrite, "--keep-models": keep_models}
        refuse_options(changing, "and --list exclude each other", "Give one.")
    seed = overrides.get("train.seed")
    problem = "has no effect: the runs have several seeds"
    refuse_options({"train.seed": seed}, problem, f"Use --seeds {seed}.")
    design = Design(
        tuple(parse_seeds(seeds)),
        () if no_shots else None if shots is None else tuple(shots),
        tuple(fractions),
        collect_overrides({}, scratch, "--scratch"),
    )
    source = find_task(task, overrides)
    target = folder or Path("studies", source.name)
    if list_cells:
        _print_cells(source, target, design, only)
        return
    _check_figure(design, figure, plot)
    launch_processes(context, num_processes)
    options = {"only": only, "keep_models": keep_models, "overwrite": overwrite}
    _run_cells(source, target, design, options)
    _print_table(source, target, design, (figure or target / "curve.png") if plot else None)


def _print_cells(source: "TaskSource", folder: Path, design: "Design", only: Sequence[str]) -> None:
    """Prints a line for each cell: its scores, or that it is to do."""
    from finetune.cli.run_display import format_scores
    from finetune.comparison import list_cells

    for cell, result in list_cells(source.recipe, folder, design, only):
        state = format_scores(result.scores) if result else "to do"
        print_line(f"{cell.name:<28} ", (state, "green" if result else "dim"))


def _check_figure(design: "Design", figure: Path | None, plot: bool) -> None:
    """Raises UsageError if the learning curve cannot be drawn, before anything runs."""
    from finetune.comparison.curve import check_figure_path, check_matplotlib

    if figure is not None:
        if not plot or not design.fractions:
            problem = "is the learning curve of --fractions"
            refuse_options({"--figure": figure}, problem, "Add --fractions 0.1 0.5 1.")
        check_figure_path(figure)
    if design.fractions and plot:
        check_matplotlib()


def compare_finished(runs: Sequence[Path], split: str | None, overrides: Overrides) -> None:
    """Prints the scores of finished runs on the same rows, and tests of their differences."""
    if len(runs) < 2:
        raise UsageError("one run has nothing to be compared with", cure="Give two or more.")
    allowed = ("data.path", "data.limit", "base.trust_remote_code")
    others = {key: value for key, value in overrides.items() if key not in allowed}
    problem = "has no effect on finished runs"
    refuse_options(others, problem, "Leave it out: each run has its own recipe.")
    data, limit = overrides.get("data.path"), overrides.get("data.limit")
    trust = bool(overrides.get("base.trust_remote_code"))
    check_tasks(runs, None, trust)
    evaluated = []
    for run in runs:
        predictor = load_predictor(run, None, None, trust)
        evaluated.append(evaluate_with_status(predictor, run, split or "evaluate", data, limit))
        del predictor  # Its memory is free for the next one.
    from finetune.reports.analysis import choose_draws, compare_runs, match_rows

    evaluated = [replace(one, name=str(run)) for one, run in zip(evaluated, runs, strict=True)]
    with show_status(" computing statistics"):
        matched = match_rows(evaluated)
        draws = choose_draws(len(matched[0].ids))
        comparisons = [
            compare_runs(evaluated[0], other, (matched[0], rows), draws)
            for other, rows in zip(evaluated[1:], matched[1:], strict=True)
        ]
    for comparison in comparisons:
        _print_comparison(comparison)
    if any(len(one.predictions.ids) > comparisons[0].rows for one in evaluated):
        note = f"Only the {format_count(comparisons[0].rows, 'row')} that all runs have are used."
        print_line((note, "yellow"))


def _print_comparison(comparison: "Comparison") -> None:
    rows = []
    for name, (one, other) in comparison.scores.items():
        difference = comparison.differences[name]
        interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
        p_value = f"{difference.p_value:.3f}"
        rows.append(
            [name, f"{one:.4f}", f"{other:.4f}", f"{difference.value:+.4f}", interval, p_value]
        )
    header = ["", comparison.first, comparison.second, "difference", "95 % interval", "p"]
    console().print(make_table(header, rows))
    text = f"{format_count(comparison.rows, 'row')}, paired bootstrap."
    if (test := comparison.mcnemar) is not None:
        text += (
            f" Only {comparison.first} is right on {test.only_first:,} rows, only "
            f"{comparison.second} on {test.only_second:,}: McNemar's test p = {test.p_value:.3f}."
        )
    print_line(text)


def _run_cells(
    source: "TaskSource", folder: Path, design: "Design", options: Mapping[str, Any]
) -> None:
    """Prints a line for each finished cell, and the state of the current one."""
    silence_libraries()
    from finetune.cli.progress_display import format_time
    from finetune.cli.run_display import RunProgress, format_scores
    from finetune.comparison import CellFinished, CellStarted, events
    from finetune.training.events import Interrupted, Notice
    from finetune.training.loop import Step

    out, progress, name = console(progress=True), RunProgress(), ""
    try:
        with out.status(Text(" preparing")) as status:
            for event in events(source.recipe, folder, design, task=source.task, **options):
                match event:
                    case CellStarted():
                        progress = RunProgress()
                        name = f"{event.cell.name} ({event.number} of {event.cells})"
                        status.update(Text(f" {name}"))
                    case CellFinished():
                        cell, cells = event.result, event.cells
                        duration = "already done" if event.reused else format_time(cell.seconds)
                        print_line(
                            (f"{event.number:>{len(str(cells))}}/{cells}  ", "dim"),
                            f"{cell.cell.name:<28} ",
                            (format_scores(cell.scores), "green"),
                            (f"  {duration}", "dim"),
                        )
                    case Notice():
                        print_line(("note: ", "yellow"), event.text)
                    case _:
                        progress.add(event)
                if isinstance(event, Step):
                    best = f"  best {format_scores(progress.best.scores)}" if progress.best else ""
                    update = f"update {progress.update}/{progress.updates}"
                    status.update(Text(f" {name}  {update}  {progress.time_left}{best}"))
    except Interrupted as stop:
        after = "" if stop.update is None else f" after update {stop.update}"
        message = f"stopped in {stop.folder.name}{after}; run the same command to continue"
        exit_stopped(message, stop.exit_code)


def _print_table(source: "TaskSource", folder: Path, design: "Design", figure: Path | None) -> None:
    """Prints the table of all finished cells and where it is written."""
    from finetune.comparison import read_table
    from finetune.comparison.curve import draw_curve
    from finetune.comparison.table import format_row

    table = read_table(source.recipe, folder, design)
    metrics = chain.from_iterable((metric, "interval") for metric in table.metrics)
    rows = (format_row(row, table.metrics) for row in table.rows)
    console().print(make_table(["", "labels", "seeds", *metrics, "collapsed"], rows))
    for note in table.notes:
        print_line((note, "dim"))
    files = ["table.md", "table.json"]
    if table.has_curve and figure is not None:
        if get_rank() == 0:
            draw_curve(table, figure)
        if figure.parent == folder:
            files.append(figure.name)
        else:
            print_line("The learning curve is in ", (str(figure), "bold"))
    print_line(f"{', '.join(files)} and a folder for each cell are in ", (str(folder), "bold"))
