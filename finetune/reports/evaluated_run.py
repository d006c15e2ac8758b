"""A finished run and its predictions on one split: what a report is made of."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from finetune.checkpointing.model_folder import read_calibration
from finetune.checkpointing.run_folder import LOG, RESULT, is_unfinished, read_result
from finetune.data.examples import ReadReport, read_examples
from finetune.data.held_out import open_split
from finetune.data.token_store import class_indices, compute_lengths, is_unlabelled
from finetune.evaluation.metrics import METRICS, Probabilities, compute_metrics
from finetune.evaluation.predictor import Predictor, SplitEvaluation, find_model_folder
from finetune.evaluation.statistics import MIN_PROBABILITY
from finetune.recipe.schema import DataConfig, Recipe
from task_formats import Classes, MultiLabel, Task, UsageError


@dataclass(frozen=True)
class Predictions:
    """The labelled rows of a split with a model's answers, in the order of the rows."""

    ids: tuple[str, ...]
    gold: NDArray[Any]
    """(N,) class or choice indices, or scores; (N, C) 1 where one of several labels applies."""
    predicted: NDArray[Any]
    """The same."""
    probabilities: NDArray[np.float64] | None
    """(N, C), 0 for choices that a row does not have; None for scores."""
    losses: NDArray[np.float64]
    """(N,) task loss in nats, or the squared error of a score."""
    tokens: NDArray[np.int64]
    """(N,) tokens of the longest view."""
    truncated_tokens: NDArray[np.int64]
    """(N,) tokens that truncation removed."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the prediction is the label; of several labels all must be right."""
        equal = self.gold == self.predicted
        return np.asarray(equal if equal.ndim == 1 else equal.all(axis=1))

    def select(self, rows: NDArray[np.int64]) -> "Predictions":
        """Returns the predictions of some rows."""
        return Predictions(
            tuple(self.ids[n] for n in rows.tolist()),
            self.gold[rows],
            self.predicted[rows],
            None if self.probabilities is None else self.probabilities[rows],
            self.losses[rows],
            self.tokens[rows],
            self.truncated_tokens[rows],
        )


@dataclass(frozen=True)
class History:
    """What a run logged: U updates and its evaluations."""

    updates: NDArray[np.int64]
    task_loss: NDArray[np.float64]
    lm_loss: NDArray[np.float64]
    evaluations: tuple[tuple[int, dict[str, float]], ...]
    """Update and scores."""


@dataclass(frozen=True)
class LabelCounts:
    """The labels of a split."""

    name: str
    report: ReadReport
    labels: NDArray[np.float64]
    """(N,) class or choice indices, or scores; (N, C) 1 where one of several labels applies."""

    def count(self, label: int) -> int:
        """Number of rows with a class, or with one of several labels."""
        applies = self.labels == label if self.labels.ndim == 1 else self.labels[:, label] == 1
        return int(applies.sum())


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished run, evaluated on one split."""

    name: str
    folder: Path
    recipe: Recipe
    task: Task
    split: str
    """The name of the split in `recipe.data`."""
    origin: str
    """Where its rows come from."""
    fingerprint: str
    """SHA-256 of the rows."""
    report: ReadReport
    scores: dict[str, float]
    """Of all labelled rows, with "loss": what `gptft evaluate` prints."""
    predictions: Predictions
    history: History | None
    result: Mapping[str, Any]
    """The content of result.json; empty if there is none."""
    data_path: str | None = None
    """What replaces the recipe's `data.path`."""
    temperature: float | None = None
    """Fitted on the evaluation split when the run was trained."""
    is_finished: bool = True
    limit: int | None = None
    """The most rows that were evaluated; None for all."""

    @property
    def split_name(self) -> str:
        """The split, without the folder of a file."""
        return self.split if self.recipe.data.path else Path(self.split).name


def score_rows(task: Task, predictions: Predictions, rows: NDArray[np.int64]) -> dict[str, float]:
    """Computes the metrics of a task over some rows, which may repeat."""
    predicted, gold, labels = predictions.predicted[rows], predictions.gold[rows], task.labels
    probabilities = None
    if predictions.probabilities is not None:
        if isinstance(labels, Classes):
            names = np.array(labels.names)
            predicted, gold = names[predicted], names[gold]
        if any(METRICS[name].reads_probabilities for name in task.metrics):
            probabilities = Probabilities(labels.names, predictions.probabilities[rows])
    ordered = task.labels.names if isinstance(labels, Classes) and labels.ordered else ()
    positive = task.positive_class
    return compute_metrics(task.metrics, predicted, gold, positive, probabilities, ordered)


def evaluate_run(
    predictor: Predictor, folder: Path, split: str, data: DataConfig, limit: int | None = None
) -> EvaluatedRun:
    """Evaluates a run on a split, and reads its log and result.

    Args:
        predictor: The loaded run.
        folder: Its folder.
        split: A split of the data set or a file, as in `data.evaluate`.
        data: The recipe's data, or what replaces them.
        limit: Use at most this number of rows; by default all.

    Raises:
        UsageError: No row has a label, or probabilities are not finite.
    """
    evaluation = predictor.evaluate_split(split, data, limit=limit)
    trained_on = predictor.recipe.data.path
    calibration = read_calibration(find_model_folder(folder))
    return EvaluatedRun(
        name=folder.absolute().name,
        folder=folder,
        recipe=predictor.recipe.model_copy(update={"data": data}),
        task=predictor.task,
        split=split,
        origin=evaluation.split.origin,
        fingerprint=evaluation.split.fingerprint,
        report=evaluation.split.report,
        scores=evaluation.result.scores,
        predictions=collect_predictions(evaluation, predictor.task),
        history=read_history(folder / LOG),
        result=_read_result(folder),
        data_path=data.path if data.path != trained_on else None,
        temperature=calibration.temperature if calibration else None,
        limit=limit,
        is_finished=not is_unfinished(folder),
    )


def _read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run; empty if there is none, or if it lacks what reports show."""
    result = read_result(folder) if (folder / RESULT).exists() else {}
    needed = {"update", "updates", "tokens", "seconds", "made_with"}
    return result if result.keys() >= needed else {}


def collect_predictions(evaluation: SplitEvaluation, task: Task) -> Predictions:
    """Returns the labelled rows of an evaluation as arrays; errors as in `evaluate_run`."""
    store, labels = evaluation.split.examples, task.labels
    known = np.flatnonzero(~is_unlabelled(store.labels))
    predictions = evaluation.result.predictions
    answers = [predictions[n] for n in known.tolist()]
    gold = store.labels[known]
    table = None
    if isinstance(labels, Classes):
        gold = class_indices(gold).astype(np.int64)
        predicted = np.array([labels.names.index(str(answer.label)) for answer in answers])
        table = np.zeros((len(known), labels.num_outputs))
        for row, answer in zip(table, answers, strict=True):
            row[: len(answer.scores)] = answer.scores
        finite = np.isfinite(table).all(axis=1)
        losses = -np.log(np.maximum(table[np.arange(len(gold)), gold], MIN_PROBABILITY))
    elif isinstance(labels, MultiLabel):
        gold = gold.astype(np.int64)
        answered = [[name in cast(tuple, a.label) for name in labels.names] for a in answers]
        predicted = np.array(answered, dtype=np.int64)
        table = np.array([answer.scores for answer in answers])
        finite = np.isfinite(table).all(axis=1)
        logits = evaluation.result.logits[known].astype(np.float64)
        losses = np.logaddexp(0, np.where(gold == 1, -logits, logits)).mean(axis=1)
    else:
        predicted = np.array([float(cast(float, answer.label)) for answer in answers])
        finite = np.isfinite(predicted)
        losses = (predicted - gold) ** 2
    if not finite.all():
        what = f"the prediction of row {answers[int(np.argmin(finite))].id} is not finite"
        raise UsageError(what, cure="The training diverged: lower --learning-rate.")
    return Predictions(
        tuple(answer.id for answer in answers),
        gold,
        predicted,
        table,
        losses,
        compute_lengths(store).longest[known],
        store.arrays.truncated_tokens[known],
    )


def read_history(path: Path) -> History | None:
    """Reads metrics.jsonl; None if there is none. A line that was cut off is ignored."""
    if not path.is_file():
        return None
    events = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            events.append(json.loads(line))
    trained = [event for event in events if event.get("event") == "train"]
    return History(
        np.array([event["update"] for event in trained], np.int64),
        # A loss that was not finite is null; as an array it is NaN.
        np.array([event["task_loss"] for event in trained], np.float64),
        np.array([event["lm_loss"] for event in trained], np.float64),
        tuple((e["update"], e["scores"]) for e in events if e.get("event") == "evaluate"),
    )


def count_labels(data: DataConfig, task: Task, split: str, name: str) -> LabelCounts:
    """Reads the labels of a split; errors as in `finetune.data.examples.read_examples`."""
    rows = open_split(data, task, split)
    examples, report = read_examples(
        task, rows, split, on_bad_row=data.on_bad_row, limit=data.limit
    )
    labels = np.array([example.label for example in examples], np.float64)
    if isinstance(task.labels, Classes):
        labels = class_indices(labels)
    return LabelCounts(name, report, labels)
