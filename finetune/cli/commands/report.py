"""`gptft report`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typer import Argument, Context, Option

from finetune.cli.commands.evaluate import check_run_exists, load_predictor
from finetune.cli.console import print_line, show_status
from finetune.cli.options import Data, Device, PythonTask, Trust
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.predictor import Predictor
    from finetune.reports.evaluated_run import EvaluatedRun


def report(
    context: Context,
    runs: list[Path] = Argument(metavar="RUN...", help="Run directories of one task."),
    output: Path = Option(Path("report.html"), "--output", "-o", help="The HTML file."),
    split: str = Option("evaluate", help="A split or a file."),
    rows: int = Option(20, min=0, max=200, help="Number of errors to show."),
    data: Data = None,
    limit: int | None = Option(
        None, min=1, help="Use at most this number of rows.", show_default="all rows"
    ),
    task: PythonTask = None,
    device: Device = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write a page with the scores, figures and errors of a run.

    Example: gptft report runs/rte -o report.html

    With several runs they are compared side by side.

    Example: gptft report runs/rte runs/rte-large --split test.csv
    """
    from finetune.reports.figures import check_matplotlib
    from finetune.reports.page import make_report
    from finetune.storage import files

    check_matplotlib()
    if output.is_dir():
        raise UsageError("this is a folder", where=str(output), cure="Name a file with -o.")
    check_tasks(runs, task, trust_remote_code)
    with files.explain_os_errors(output):  # Before the runs are evaluated.
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
    evaluated, view_tokens = [], None
    for run in runs:
        predictor = load_predictor(run, task, device, trust_remote_code)
        evaluated.append(evaluate_with_status(predictor, run, split, data, limit))
        # The first run shows how texts are read; the others are freed.
        view_tokens = view_tokens or predictor.view_tokens
    assert view_tokens is not None  # Typer asks for at least one run.
    command = f"gptft {shlex.join(context.obj)}"
    with show_status(" computing statistics"):
        page = make_report(evaluated, view_tokens, command, rows).encode("utf-8", "replace")
    files.write_atomically(output, page)
    print_line("Wrote ", (str(output), "bold"), f" ({len(page) / 1000:,.0f} kB).")


def check_tasks(runs: Sequence[Path], task: str | None, trust: bool) -> None:
    """Raises UsageError for runs of different tasks, before any of them is evaluated."""
    from finetune.checkpointing.run_folder import load_run_recipe
    from finetune.cli.task_sources import find_python_task
    from finetune.reports.analysis import check_same_labels

    for run in runs:
        check_run_exists(run)
    own = find_python_task(task)
    tasks = [load_run_recipe(run, trust).task.resolve(own) for run in runs]
    for run, other in zip(runs[1:], tasks[1:], strict=True):
        check_same_labels(str(runs[0]), tasks[0], str(run), other)


def evaluate_with_status(
    predictor: "Predictor", run: Path, split: str, data: str | None, limit: int | None
) -> "EvaluatedRun":
    """Evaluates a run on a split, with a status line; `data` replaces its `data.path`."""
    from finetune.cli.progress_display import show_progress
    from finetune.cli.task_sources import find_split
    from finetune.recipe.loading import override_recipe, resolve_paths
    from finetune.reports.evaluated_run import evaluate_run

    recipe = predictor.recipe
    if data is not None:
        recipe = resolve_paths(override_recipe(recipe, {"data.path": data}), Path.cwd())
    name = find_split(recipe.data, split)
    with show_progress(f"evaluating {run} on {name}"):
        return evaluate_run(predictor, run, name, recipe.data, limit)
