"""`gptft evaluate`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Option

from finetune.cli.console import console, get_rank, print_line, show_status, silence_libraries
from finetune.cli.options import (
    FILE_FLAGS,
    Data,
    Device,
    Overrides,
    Precision,
    PythonTask,
    Run,
    Trust,
    with_recipe_flags,
)
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.evaluation.predictor import Predictor


@partial(with_recipe_flags, flags=FILE_FLAGS, with_set=False)
def evaluate(
    run: Run,
    overrides: Overrides,
    split: list[str] | None = Option(
        None, help="A split or a file. May be repeated.", show_default="all evaluation splits"
    ),
    data: Data = None,
    limit: int | None = Option(
        None, min=1, help="Use at most this number of rows of each split.", show_default="all rows"
    ),
    task: PythonTask = None,
    device: Device = None,
    precision: Precision = None,
    trust_remote_code: Trust = False,
) -> None:
    """Evaluate a run on the splits of its data.

    All rows of a split are used, also if --limit was given for training.

    Example: gptft evaluate runs/mnli --split validation_mismatched
    """
    predictor = load_predictor(run, task, device, trust_remote_code, precision=precision)
    from finetune.checkpointing.run_folder import RESULT, read_result
    from finetune.cli.progress_display import show_progress
    from finetune.cli.run_display import make_score_table
    from finetune.cli.task_sources import find_split
    from finetune.recipe.loading import override_recipe, resolve_paths

    recipe = predictor.recipe
    if data is not None or overrides:
        changes = {**overrides, **({} if data is None else {"data.path": data})}
        recipe = resolve_paths(override_recipe(recipe, changes), Path.cwd())
    is_finished = (run / RESULT).exists()
    names = split or list(read_result(run)["scores"] if is_finished else ()) or ["evaluate"]
    with show_progress(f"evaluating on {', '.join(names)}"):
        splits = {name: find_split(recipe.data, name) for name in names}
        evaluated = {
            name: predictor.evaluate_split(split, recipe.data, limit=limit)
            for name, split in splits.items()
        }
    for rows, _ in evaluated.values():
        for note in rows.describe():
            print_line(("note: ", "yellow"), note, stderr=True)
    scores = {name: result.scores for name, (_, result) in evaluated.items()}
    counts = {name: len(rows.examples) for name, (rows, _) in evaluated.items()}
    console().print(make_score_table(scores, counts))


def check_run_exists(run: Path) -> None:
    """Raises UsageError if there is no such folder."""
    if not run.exists():
        raise UsageError("no such run directory", where=str(run), cure="Check the path.")


def load_predictor(
    run: Path,
    task: str | None,
    device: str | None,
    trust: bool,
    *,
    calibrated: bool = False,
    precision: str | None = None,
) -> "Predictor":
    """Loads the model of a run, with a status line; `task` is a module:attribute."""
    check_run_exists(run)  # Before torch is imported, which takes seconds.
    silence_libraries()
    with show_status(f" loading {run}"):
        from finetune.checkpointing.run_folder import is_unfinished
        from finetune.cli.task_sources import find_python_task
        from finetune.evaluation.predictor import load

        own_task = find_python_task(task)
        changes: dict[str, Any] = {"precision": precision} if precision else {}
        found = load(
            run, device, task=own_task, trust_remote_code=trust, calibrated=calibrated, **changes
        )
    if is_unfinished(run) and get_rank() == 0:
        text = f"the run is not finished (gptft resume {run}): this is its best model so far"
        print_line(("note: ", "yellow"), text, stderr=True)
    return found
