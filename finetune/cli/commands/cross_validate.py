"""`gptft cross-validate`."""

import itertools
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Context, Option

from finetune.cli.console import (
    console,
    get_rank,
    make_table,
    print_line,
    show_status,
    silence_libraries,
)
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    RECIPE_FLAGS,
    NumProcesses,
    Overrides,
    Overwrite,
    TaskName,
    with_recipe_flags,
)

if TYPE_CHECKING:
    from finetune.cli.task_sources import TaskSource
    from finetune.training.cross_validation import OutOfFold, Statistics

RESULT_FILE = "cross_validation.json"
_FLAGS = {key: flag for key, flag in RECIPE_FLAGS.items() if key != "data.hold_out"}


@partial(with_recipe_flags, flags=_FLAGS)
def cross_validate(
    context: Context,
    overrides: Overrides,
    task: TaskName,
    folds: int = Option(5, min=2, metavar="K", help="Number of folds."),
    group_by: str | None = Option(
        None, metavar="COLUMN", help="Keep rows with equal values in this column together."
    ),
    folder: Path | None = Option(
        None, "--folder", "-o", help="Output directory.", show_default="runs/TASK-folds"
    ),
    output_format: Literal["csv", "tsv", "jsonl", "json", "parquet"] | None = Option(
        None, help="Format of the predictions.", show_default="csv or jsonl, as the rows"
    ),
    overwrite: Overwrite = False,
    num_processes: NumProcesses = 1,
) -> None:
    """Train and evaluate on K folds of the training rows, and predict every row.

    Example: gptft cross-validate --task reviews.yaml --folds 5

    Folds are stratified. Run the command again to complete an interrupted cross-validation:
    finished folds are kept.
    """
    from finetune.cli.task_sources import find_task

    groups = {"data.group_by": group_by} if group_by is not None else {}
    source = find_task(task, {**overrides, **groups})
    launch_processes(context, num_processes)
    target = folder or Path("runs", f"{source.name}-folds")
    scores = _train_folds(source, target, folds, overwrite)
    if len(scores) < folds:  # A signal stopped a fold.
        return
    from finetune.training.cross_validation import predict_out_of_fold, summarize

    with show_status(" predicting every row"):
        out_of_fold = predict_out_of_fold(target, folds, task=source.task)
    summary = summarize(scores)
    _print_scores(scores, summary, out_of_fold)
    if get_rank() == 0:
        path = _write_predictions(source, target, out_of_fold, output_format)
        _write_result(target, scores, summary, out_of_fold)
        print_line(
            f"{path.name}, {RESULT_FILE} and a run for each fold are in ", (str(target), "bold")
        )


def _train_folds(
    source: "TaskSource", folder: Path, folds: int, overwrite: bool
) -> list[dict[str, float]]:
    """Trains the folds one after the other; returns the scores of each."""
    silence_libraries()
    from finetune.cli.run_display import display_run
    from finetune.recipe.schema import HELD_OUT
    from finetune.training.cross_validation import train_fold

    scores = []
    for fold in range(1, folds + 1):
        run = train_fold(source.recipe, folder, fold, folds, task=source.task, overwrite=overwrite)
        result = display_run(run, f"Fold {fold} of {folds}")
        if result is None:
            break
        scores.append(result.scores[HELD_OUT])
    return scores


def _print_scores(
    scores: list[dict[str, float]], summary: "dict[str, Statistics]", out_of_fold: "OutOfFold"
) -> None:
    counts = [*out_of_fold.fold.values()]
    rows = [
        [f"fold {fold}", f"{counts.count(fold):,}", *(f"{value:.4f}" for value in row.values())]
        for fold, row in enumerate(scores, 1)
    ]
    rows.append(["mean", "", *(f"{value.mean:.4f}" for value in summary.values())])
    rows.append(["  ± deviation", "", *(f"{value.deviation:.4f}" for value in summary.values())])
    together = [out_of_fold.scores.get(name) for name in summary]
    shown = ("" if value is None else f"{value:.4f}" for value in together)
    rows.append(["all rows together", f"{len(counts):,}", *shown])
    console().print(make_table(["", "rows", *summary], rows))


def _write_predictions(
    source: "TaskSource", folder: Path, out_of_fold: "OutOfFold", format: str | None
) -> Path:
    """Writes all training rows with fold and prediction; both are empty for unlabelled rows."""
    from finetune.cli.output_rows import find_columns
    from finetune.data import name_columns, open_rows, write_rows
    from task_formats import RowError

    recipe = source.recipe
    task = recipe.task.resolve(source.task)
    rows = open_rows(recipe.data, str(recipe.data.train))
    source_format = rows.options.format if hasattr(rows, "options") else "jsonl"
    suffix = format or ("csv" if source_format in ("csv", "tsv") else "jsonl")
    path = folder / f"predictions.{suffix}"
    located = (
        (location, {} if isinstance(row, RowError) else row) for location, row in rows.read()
    )
    columns, items = find_columns(located)
    added = name_columns(columns, task.labels.names)
    fold_column = "fold" if "fold" not in columns else "predicted_in_fold"
    with write_rows(str(path), [*columns, fold_column, *added], format=suffix) as sink:
        for index, (_, row) in enumerate(items):
            values: tuple[Any, ...] = ()
            if (prediction := out_of_fold.predictions.get(index)) is not None:
                label = prediction.label
                several = list(label) if isinstance(label, tuple) else label
                values = (several, *prediction.scores)[: len(added)]
            predicted = dict(itertools.zip_longest(added, values))
            sink.write({**row, fold_column: out_of_fold.fold.get(index), **predicted})
    return path


def _write_result(
    folder: Path,
    scores: list[dict[str, float]],
    summary: "dict[str, Statistics]",
    out_of_fold: "OutOfFold",
) -> None:
    from finetune.storage import files, json_files

    values = {
        "folds": scores,
        "mean": {name: value.mean for name, value in summary.items()},
        "deviation": {name: value.deviation for name, value in summary.items()},
        "all_rows": out_of_fold.scores,
        "rows": len(out_of_fold.fold),
    }
    files.write_atomically(folder / RESULT_FILE, json_files.encode(values, indent=2) + b"\n")
