"""Cross-validation: a run for each fold, trained on the other folds and scored on its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from finetune.checkpointing.run_folder import RECIPE, RESULT, load_run_recipe
from finetune.evaluation.metrics import score_predictions
from finetune.evaluation.predictor import load
from finetune.recipe.differences import compare_settings
from finetune.recipe.loading import resolve_paths
from finetune.recipe.schema import HELD_OUT, Fold, Recipe
from finetune.training.events import Event
from finetune.training.finetuning import events
from task_formats import Label, Prediction, Task, UsageError

_SECTIONS = ("task", "base", "head", "train", "data")


class Statistics(NamedTuple):
    """A metric over K folds."""

    mean: float
    deviation: float
    """Standard deviation with K - 1 in the denominator."""


class OutOfFold(NamedTuple):
    """Predictions of every labelled training row, each by the run that was not trained on it."""

    fold: dict[int, int]
    """Index of a row in the training data to its fold, from 1."""
    predictions: dict[int, Prediction]
    """Index of a row to its prediction."""
    scores: dict[str, float]
    """The task's metrics over all rows together."""


def fold_recipe(recipe: Recipe, fold: int, folds: int) -> Recipe:
    """Returns the recipe of one fold, which replaces `data.evaluate` and `data.hold_out`."""
    hold_out = Fold(fold=fold, folds=folds)
    data = recipe.data.model_dump() | {"evaluate": None, "hold_out": hold_out}
    return recipe.model_copy(update={"data": type(recipe.data)(**data)})


def fold_folder(folder: Path, fold: int) -> Path:
    """Returns the run folder of a fold."""
    return folder / f"fold-{fold}"


def train_fold(
    recipe: Recipe,
    folder: Path,
    fold: int,
    folds: int,
    *,
    task: Task | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> Iterator[Event]:
    """Trains the run of one fold, or goes on with it; a finished one is kept.

    Args:
        recipe: The recipe of the whole cross-validation.
        folder: Holds the run folders of all folds.
        fold: Which fold is evaluated, from 1.
        folds: Number of folds.
        task: Replaces the recipe's task, for tasks defined in Python.
        overwrite: Delete the run in the folder first.
        device: cpu, cuda or the like. [default: the best available]

    Raises:
        UsageError: The folder holds a finished run with other settings.
        Interrupted: A signal asked the run to stop.
    """
    wanted = resolve_paths(fold_recipe(recipe, fold, folds), Path.cwd())
    run = fold_folder(folder, fold)
    if (run / RESULT).exists() and not overwrite:
        _check_same_settings(run, wanted)
    resume = not overwrite and (run / RECIPE).exists()
    yield from events(wanted, run, resume=resume, overwrite=overwrite, task=task, device=device)


def _check_same_settings(run: Path, wanted: Recipe) -> None:
    saved = load_run_recipe(run, wanted.base.trust_remote_code)
    if difference := compare_settings(saved, wanted, _SECTIONS, ("base.path",)):
        what = f"this fold was trained with another {difference}"
        raise UsageError(what, where=str(run), cure="Use --overwrite, or another folder with -o.")


def summarize(scores: Sequence[dict[str, float]]) -> dict[str, Statistics]:
    """Returns mean and spread of each metric over K >= 2 folds."""
    return {
        name: Statistics(fmean(fold[name] for fold in scores), stdev(fold[name] for fold in scores))
        for name in scores[0]
    }


def predict_out_of_fold(
    folder: Path, folds: int, *, task: Task | None = None, device: str | None = None
) -> OutOfFold:
    """Predicts the held-out rows of every fold with its run.

    Args:
        folder: Holds the finished runs of all folds.
        folds: Number of folds.
        task: Required if the runs were trained with a task defined in Python.
        device: cpu, cuda or the like. [default: the best available]
    """
    fold_of: dict[int, int] = {}
    predictions: dict[int, Prediction] = {}
    labels: list[Label] = []
    for fold in range(1, folds + 1):
        predictor = load(fold_folder(folder, fold), device, task=task)
        split, result = predictor.evaluate_split(HELD_OUT)
        for example, prediction in zip(split.examples, result.predictions, strict=True):
            index = int(example.id.rpartition("/")[2])
            fold_of[index], predictions[index] = fold, prediction
            labels.append(example.label)
    scores = score_predictions(predictor.task, predictions.values(), labels)
    return OutOfFold(fold_of, predictions, scores)
