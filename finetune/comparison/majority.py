"""The majority-class baseline: one answer for every row, without a model."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from finetune.data.examples import read_split
from finetune.evaluation.metrics import bootstrap_interval, compute_metrics
from finetune.recipe.schema import Recipe
from task_formats import Example, Label, Range, Task


class MajorityBaseline(NamedTuple):
    """The scores of one answer for every row."""

    answer: str | float
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap confidence intervals over rows."""
    train_rows: int
    """Labelled training rows."""


def predict_majority(recipe: Recipe, task: Task) -> MajorityBaseline:
    """Scores the most frequent training label, or the mean training score, on the evaluation split.

    Of equally frequent labels the first in the order of the task counts.

    Raises:
        UsageError: A split is not set or cannot be read.
    """
    config = recipe.data
    train = _labels(read_split(task, config, "train", limit=config.limit))
    evaluate = _labels(read_split(task, config, "evaluate", limit=config.limit))
    answer = _most_frequent(task, train)
    predicted = np.array([answer] * len(evaluate))
    gold = np.array([task.labels.name(cast(float, label)) for label in evaluate])

    def metrics(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        return compute_metrics(task.metrics, predicted.tolist(), gold.tolist(), task.positive_class)

    intervals = bootstrap_interval(metrics, predicted, gold)
    return MajorityBaseline(answer, metrics(predicted, gold), intervals, len(train))


def _most_frequent(task: Task, labels: Sequence[Label]) -> str | float:
    if isinstance(task.labels, Range):
        return float(np.mean(cast(Sequence[float], labels)))
    counts = Counter(labels)
    best = min(counts, key=lambda label: (-counts[label], cast(int, label)))
    return task.labels.name(cast(int, best))


def _labels(examples: Sequence[Example]) -> list[Label]:
    return [example.label for example in examples if example.label is not None]
