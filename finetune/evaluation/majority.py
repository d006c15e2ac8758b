"""The baseline without a model: the most frequent label, or the mean score."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from finetune.evaluation.metrics import score_predictions
from task_formats import Labels, MultiLabel, Prediction, Range, Task


class Baseline(NamedTuple):
    """How the baseline is called, and what it answers for every row."""

    name: str
    answer: str


def describe_majority(labels: Labels) -> Baseline:
    """Returns the name of the baseline for labels or scores."""
    if isinstance(labels, Range):
        return Baseline("mean score", "the mean training score")
    if isinstance(labels, MultiLabel):
        return Baseline("majority labels", "the labels of at least half of the training rows")
    return Baseline("majority class", "the most frequent training label")


def majority_prediction(task: Task, labels: Sequence[Any]) -> Prediction:
    """Returns the most frequent of N encoded labels, or the mean of N scores.

    Of equally frequent labels the first in the order of the task counts. The probability of a
    label is its frequency.
    """
    return task.labels.predict_majority(labels)


def score_majority(
    task: Task, train_labels: Sequence[Any], labels: Sequence[Any]
) -> dict[str, float]:
    """Computes the task's metrics for the answer that is most frequent in training.

    Args:
        task: Gives metrics and label names.
        train_labels: Encoded labels of the training examples.
        labels: Encoded labels of the examples to score.

    Returns:
        Metric name to value.
    """
    return score_predictions(task, [majority_prediction(task, train_labels)] * len(labels), labels)
