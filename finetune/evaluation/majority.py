"""The baseline without a model: the most frequent label, or the mean score."""

from collections.abc import Sequence
from typing import Any

from finetune.evaluation.metrics import score_predictions
from task_formats import Prediction, Task


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
