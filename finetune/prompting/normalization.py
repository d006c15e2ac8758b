"""From log-likelihoods of answers to numbers that can be compared: pure arithmetic."""

from collections.abc import Sequence

import numpy as np

from task_formats import Question


def per_token(scores: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """(N, K) log-likelihoods, each divided by its answer's tokens (GPT-3, section 2.4)."""
    return scores / _table([question.token_counts for question in questions], scores.shape[1])


def per_byte(scores: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """(N, K) log-likelihoods, each divided by its answer's number of UTF-8 bytes."""
    sizes = [tuple(max(size, 1) for size in question.text_bytes) for question in questions]
    return scores / _table(sizes, scores.shape[1])


def against(scores: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, K) log-ratios of how likely answers are in two contexts; -inf stays where none is.

    Against the prior this is GPT-3's P(answer | context) / P(answer | prior); against a question
    without content it is contextual calibration (Zhao et al. 2021, with W = diag(p)⁻¹ and b = 0).
    """
    return np.where(np.isfinite(scores), scores - np.where(np.isfinite(other), other, 0), -np.inf)


def mean_probability(scores: Sequence[np.ndarray]) -> np.ndarray:
    """(N, K) log of the mean over several tables of the probabilities of answers."""
    logs = np.stack([log_softmax(table) for table in scores])
    return np.logaddexp.reduce(logs, axis=0) - np.log(len(scores))


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """(N, K) logs of probabilities that sum to 1 over the answers; -inf stays."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def expected_value(scores: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """(N,) means of the K values under the answers' probabilities."""
    return np.exp(log_softmax(scores)) @ np.asarray(values)


def _table(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """(N, K) of ragged rows, 1 where a row has no more."""
    return np.array([[*row, *[1] * (width - len(row))] for row in rows], np.float64)
