"""The baseline without a model: the most frequent label, or the mean score."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from finetune.evaluation.metrics import score_predictions
from task_formats import Prediction, Range, Task


def majority_prediction(task: Task, labels: Sequence[float]) -> Prediction:
    """Returns the most frequent of N encoded labels, or the mean of N scores.

    Of equally frequent labels the first in the order of the task counts. The probability of a
    label is its frequency.
    """
    if isinstance(task.labels, Range):
        mean = float(np.mean(labels))
        return Prediction("", mean, (mean,))
    counts = Counter(map(int, labels))
    answer = task.labels.name(max(sorted(counts), key=counts.__getitem__))
    frequencies = [counts[k] / len(labels) for k in range(task.labels.num_outputs)]
    return Prediction("", answer, tuple(frequencies))


def score_majority(
    task: Task, train_labels: Sequence[float], labels: Sequence[float]
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
