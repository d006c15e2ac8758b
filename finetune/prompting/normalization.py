"""Normalization, calibration and thresholds: from log-likelihoods to comparable answer scores."""

from collections.abc import Callable, Sequence

import numpy as np

from task_formats import Prediction, Question, Task
from task_formats.prompts import Normalization

_MAX_THRESHOLDS = 200
"""Thresholds tried at most, taken as quantiles of the scores."""


def normalize_lengths(
    scores: np.ndarray, questions: Sequence[Question], kind: Normalization
) -> np.ndarray:
    """(N, K) log-likelihoods per token (GPT-3, section 2.4) or per UTF-8 byte of their answers.

    Other kinds of normalization leave them as they are.
    """
    if kind == "token":
        lengths = [question.token_counts for question in questions]
    elif kind == "byte":
        lengths = [tuple(max(size, 1) for size in question.text_bytes) for question in questions]
    else:
        return scores
    padded = [[*row, *[1] * (scores.shape[1] - len(row))] for row in lengths]
    return scores / np.array(padded, np.float64)


def log_ratio(scores: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """(N, K) log-likelihoods minus those of the same answers in a baseline context.

    With the prior as baseline this is log P(answer | context) / P(answer | prior) (GPT-3, section
    2.4); with a content-free input it is contextual calibration (Zhao et al. 2021, section 4, with
    W = diag(p)⁻¹ and b = 0). Absent answers stay at -inf.
    """
    finite = np.where(np.isfinite(baseline), baseline, 0)
    return np.where(np.isfinite(scores), scores - finite, -np.inf)


def mean_log_probability(tables: Sequence[np.ndarray]) -> np.ndarray:
    """(N, K) log of the answers' probabilities, averaged over several (N, K) score tables."""
    logs = np.stack([log_softmax(scores) for scores in tables])
    return np.logaddexp.reduce(logs, axis=0) - np.log(len(tables))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """(N, K) log-probabilities that sum to 1 over the answers; absent answers stay at -inf."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def expected_value(scores: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """(N,) means of the K answers' values under the answers' probabilities."""
    return np.exp(log_softmax(scores)) @ np.asarray(values)


def apply_threshold(
    task: Task, questions: Sequence[Question], scores: np.ndarray, threshold: float
) -> list[Prediction]:
    """Predicts the second of two labels where the (N,) score is above the threshold.

    This is GPT-1's zero-shot heuristic for CoLA (section 5). The score becomes the only entry of
    the prediction's `scores`.
    """
    first, second = task.labels.name(0), task.labels.name(1)
    return [
        Prediction(question.id, second if score > threshold else first, (float(score),))
        for question, score in zip(questions, scores, strict=True)
    ]


def best_threshold(scores: np.ndarray, metric: Callable[[float], float]) -> float:
    """Returns the lowest of the thresholds for which `metric`, on labelled rows, is highest.

    The candidates are the (N,) scores and one value below all of them. GPT-1 does not say how its
    threshold was chosen; fitted on labelled rows, the result is not strictly zero-shot.
    """
    candidates = np.unique(scores)
    if len(candidates) > _MAX_THRESHOLDS:
        quantiles = np.linspace(0, 1, _MAX_THRESHOLDS)
        candidates = np.unique(np.quantile(scores, quantiles, method="lower"))
    below_all = np.nextafter(candidates[0], -np.inf)
    return max(map(float, (below_all, *candidates)), key=metric)
