"""The verb compare: one table of a task, while it is made and when it is done."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.commands.prompt import parse_numbers
from finetune.cli.console import console, print_line, process, quiet_libraries
from finetune.cli.endings import end_stopped
from finetune.cli.launcher import is_child, run_processes
from finetune.cli.options import Processes
from finetune.cli.recipe_options import Changes, collect, with_overrides
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.cli.task_sources import TaskSource
    from finetune.comparison import Design


TaskName = Annotated[
    str, typer.Option("--task", "-t", help="A shipped recipe, a YAML file, or module:name.")
]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", "-o", metavar="FOLDER", help="The study; else studies/TASK."),
]
Seeds = Annotated[
    str, typer.Option(metavar="N-M", help="Of runs and solved examples, as 0-4 or 0,7.")
]
Shots = Annotated[
    list[int] | None,
    typer.Option(min=0, metavar="K ...", help="Solved examples to ask with; else 0 4 32."),
]
NoShots = Annotated[bool, typer.Option("--no-shots", help="Ask nothing.")]
Fractions = Annotated[
    list[float] | None,
    typer.Option(metavar="F ...", help="Parts of the labels to fine-tune on: a curve."),
]
Scratch = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A recipe value for runs from scratch alone."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="CELL ...", help="These cells alone, by name or as 'scratch*'."),
]
Listed = Annotated[bool, typer.Option("--list", help="Name all cells and their scores, and stop.")]
KeepModels = Annotated[
    bool, typer.Option("--keep-models", help="Keep the best model of every trained cell.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Do the chosen cells anew.")]
Plot = Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the curve of --fractions.")]


@partial(with_overrides, without=("train.seed",))
def compare(
    context: typer.Context,
    changes: Changes,
    task: TaskName,
    folder: Folder = None,
    seeds: Seeds = "0-4",
    shots: Shots = None,
    no_shots: NoShots = False,
    fractions: Fractions = None,
    scratch: Scratch = None,
    only: Only = None,
    listed: Listed = False,
    keep_models: KeepModels = False,
    overwrite: Overwrite = False,
    plot: Plot = True,
    num_processes: Processes = 1,
) -> None:
    """Compare ways to do a task: majority, few-shot, from scratch, fine-tuned with λ = 0 and λ.

    Example: gptft compare --task rte --base tiny --seeds 0-4 --shots 0 4 32

    Called again it reads the cells that are done, and goes on with the others.
    """
    from finetune.cli.task_sources import find
    from finetune.comparison import Design
    from finetune.comparison.curve import check_plots

    if no_shots:
        _refuse_beside("--no-shots", {"--shots": shots})
    if listed:
        _refuse_beside("--list", {"--overwrite": overwrite, "--keep-models": keep_models})
    counts = () if no_shots else None if shots is None else tuple(shots)
    alone = collect({}, scratch or [], "--scratch")
    design = Design(tuple(parse_numbers(seeds)), counts, tuple(fractions or ()), alone)
    _check_changes(changes)
    source = find(task, changes)
    target = folder or Path("studies", source.name)
    if listed:
        _list(source, target, design, only or ())
        return
    if design.fractions and plot:
        check_plots()
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    _compare(
        source,
        target,
        design,
        only=only or (),
        keep_models=keep_models,
        overwrite=overwrite,
    )
    _conclude(source, target, design, plot)


def _refuse_beside(option: str, others: Mapping[str, object]) -> None:
    """UsageError where another option was given that means nothing beside this one."""
    for other, value in others.items():
        if value:
            what = f"{option} and {other} exclude each other"
            raise UsageError(what, cure="Give one of the two.")


def _check_changes(changes: Changes) -> None:
    """UsageError for a value that every cell has for itself."""
    if "train.seed" in changes:
        what = "a study has its own seeds, and train.seed is that of a single run"
        raise UsageError(what, where="--set", cure=f"Say --seeds {changes['train.seed']}.")


def _compare(source: "TaskSource", folder: Path, design: "Design", **options: Any) -> None:
    """Does the study before the user's eyes; a signal's stop ends with that signal's exit code."""
    quiet_libraries()
    from finetune.cli.study_display import follow_study
    from finetune.comparison import events
    from finetune.training.events import Interrupted

    happening = events(source.recipe, folder, design, task=source.task, **options)
    try:
        follow_study(happening, console())
    except Interrupted as stop:
        after = "" if stop.update is None else f" after update {stop.update}"
        words = f"stopped in {stop.folder.name}{after}; the same command goes on from there"
        end_stopped(words, stop.exit_code)


def _conclude(source: "TaskSource", folder: Path, design: "Design", plot: bool) -> None:
    """The table of all that is done, and where it is written."""
    from finetune.cli.study_display import study_table
    from finetune.comparison import read_table
    from finetune.comparison.curve import draw_curve

    table = read_table(source.recipe, folder, design)
    out = console()
    out.print(study_table(table))
    for note in table.notes:
        print_line((note, "dim"))
    written = ["table.md", "table.json"]
    if table.curves and plot:
        if process() == 0:
            draw_curve(table, folder / "curve.png")
        written.append("curve.png")
    print_line(f"{', '.join(written)} and a folder for every cell are in ", (str(folder), "bold"))


def _list(source: "TaskSource", folder: Path, design: "Design", only: Sequence[str]) -> None:
    """A line per chosen cell: its name, and its scores where it is done."""
    from finetune.cli.run_status import say_scores
    from finetune.comparison import list_cells

    for cell, found in list_cells(source.recipe, folder, design, only):
        state = say_scores(found.scores) if found else "to do"
        print_line(f"{cell.name:<28} ", (state, "green" if found else "dim"))
