"""How well predictions agree with the truth: the metrics of GLUE (facts, section 2)."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from task_formats import UsageError, suggest

Answers = Sequence[str | float]
"""N class names, or N scores."""


def score(
    metrics: Sequence[str], predicted: Answers, gold: Answers, positive: str | None = None
) -> dict[str, float]:
    """Each metric by its name; `positive` is the class that f1 counts.

    Never undefined: a metric that would divide by zero (a correlation where one side is constant,
    or has fewer than two values or one that is not finite; F1 of a class nobody names) is 0.
    Raises UsageError for an unknown metric, for no answers, and for f1 without `positive`.
    """
    for name in metrics:
        if name not in _METRICS:
            raise UsageError(f"unknown metric {name!r}", cure=suggest(name, _METRICS))
    if not len(gold):
        raise UsageError("no labelled rows to score", cure="Evaluate on rows that have labels.")
    assert len(predicted) == len(gold), (len(predicted), len(gold))
    found = {
        name: _METRICS[name](np.asarray(predicted), np.asarray(gold), positive) for name in metrics
    }
    return {name: float(value) for name, value in found.items()}


def _accuracy(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    return sk.accuracy_score(gold, predicted)


def _f1(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    if positive is None:
        raise UsageError("f1 is about one label", cure="Name it with task.positive.")
    return sk.f1_score(gold, predicted, labels=[positive], average="macro", zero_division=0.0)


def _macro_f1(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    """The mean F1 of all classes that occur, as the truth or as an answer."""
    return sk.f1_score(gold, predicted, average="macro", zero_division=0.0)


def _matthews(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    if len(np.union1d(gold, predicted)) < 2:
        return 0.0
    return sk.matthews_corrcoef(gold, predicted)


def _pearson(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    return _correlate(stats.pearsonr, predicted, gold)


def _spearman(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    return _correlate(stats.spearmanr, predicted, gold)


def _mse(predicted: np.ndarray, gold: np.ndarray, positive: str | None) -> float:
    return sk.mean_squared_error(gold, predicted)


def _correlate(
    correlation: Callable[[np.ndarray, np.ndarray], tuple[float, float]],
    predicted: np.ndarray,
    gold: np.ndarray,
) -> float:
    if len(gold) < 2 or not np.isfinite((predicted, gold)).all():
        return 0.0
    # scipy warns of constant and of almost constant input; what it then gives is checked below.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        value = float(correlation(predicted, gold)[0])
    return value if math.isfinite(value) else 0.0


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "mse": _mse,
}
