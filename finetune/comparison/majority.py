"""The answer that needs no model: the same one for every row."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from finetune.data.examples import read_examples
from finetune.data.sources import open_rows
from finetune.evaluation.intervals import bootstrap_interval
from finetune.evaluation.metrics import score
from finetune.recipe.schema import Recipe
from task_formats import Label, Range, Task, UsageError


class MajorityBaseline(NamedTuple):
    """How good it is to give one answer to all rows."""

    answer: str | float
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    """95 % of what other rows of the kind would have scored (bootstrap)."""
    rows: int
    """Training rows that the answer was found in."""


def predict_majority(recipe: Recipe, task: Task) -> MajorityBaseline:
    """The commonest training label, or the mean training score, scored on the evaluation split.

    Of labels that are equally common the first in the order of the task is taken.
    """
    known, asked = _labels(recipe, task, "train"), _labels(recipe, task, "evaluate")
    answer = _commonest(task, known)
    predicted = np.array([answer] * len(asked))
    gold = np.array([task.labels.name(cast(float, label)) for label in asked])

    def judge(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        return score(task.metrics, predicted.tolist(), gold.tolist(), task.positive_class)

    intervals = bootstrap_interval(judge, predicted, gold)
    return MajorityBaseline(answer, judge(predicted, gold), intervals, len(known))


def _commonest(task: Task, labels: Sequence[Label]) -> str | float:
    if isinstance(task.labels, Range):
        return float(np.mean(cast(Sequence[float], labels)))
    counts = Counter(labels)
    best = min(counts, key=lambda label: (-counts[label], cast(int, label)))
    return task.labels.name(cast(int, best))


def _labels(recipe: Recipe, task: Task, role: str) -> list[Label]:
    part = recipe.data
    split = getattr(part, role)
    if split is None:
        raise UsageError(
            f"the recipe names no {role} split", where=f"data.{role}", cure="Name a split or file."
        )
    rows = open_rows(part, split)
    examples, _ = read_examples(task, rows, split, on_bad_row=part.on_bad_row, limit=part.limit)
    return [example.label for example in examples if example.label is not None]
