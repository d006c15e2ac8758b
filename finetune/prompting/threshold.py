"""Two labels told apart by how likely one text is: GPT-1's way to ask CoLA (section 5)."""

from collections.abc import Callable, Sequence

import numpy as np

from task_formats import Prediction, Question, Task

_CANDIDATES = 200
"""Thresholds that are tried at most: as many quantiles of the weights."""


def apply_threshold(
    task: Task, questions: Sequence[Question], weights: np.ndarray, threshold: float
) -> list[Prediction]:
    """The last of two labels where the (N,) weight is over the threshold, else the first.

    A prediction's one score is its weight.
    """
    first, last = task.labels.name(0), task.labels.name(1)
    return [
        Prediction(question.id, last if weight > threshold else first, (float(weight),))
        for question, weight in zip(questions, weights, strict=True)
    ]


def best_threshold(weights: np.ndarray, judge: Callable[[float], float]) -> float:
    """The lowest of the thresholds that `judge` likes best, among the (N,) weights themselves.

    The paper names no rule. One number is fitted, so on thousands of rows it is hardly overfitted;
    but labels are read, and what is found is zero-shot in its spirit only.
    """
    known = np.unique(weights)
    if len(known) > _CANDIDATES:
        at = np.linspace(0, 1, _CANDIDATES)
        known = np.unique(np.quantile(weights, at, method="lower"))
    below = np.nextafter(known[0], -np.inf)  # Everything is over it.
    return max(map(float, (below, *known)), key=judge)
