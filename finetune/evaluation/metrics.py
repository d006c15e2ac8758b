"""The metrics of a task: one table, to which a new metric is added by one entry.

scikit-learn and SciPy are imported when a metric is computed, so that recipes can look up the
table without loading them.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from task_formats import UsageError, suggest

if TYPE_CHECKING:
    import numpy as np

Answers = Sequence[str | float]
"""N class names, or N scores."""


class Metric(NamedTuple):
    """One row of the table of metrics."""

    function: Callable[["np.ndarray", "np.ndarray", str | None], float]
    """From (N,) predictions, (N,) gold labels and the positive class to a value."""
    labels: Literal["classes", "scores"]
    """The kind of label that the metric is for."""
    higher_is_better: bool = True


def compute_metrics(
    names: Sequence[str], predicted: Answers, gold: Answers, positive: str | None = None
) -> dict[str, float]:
    """Computes metrics by name.

    No metric is undefined: where one would divide by zero (a correlation of a constant, F1 of a
    class that does not occur) it is 0.

    Args:
        names: Keys of METRICS.
        predicted: N predicted class names or scores.
        gold: N true class names or scores.
        positive: The class that f1 counts.

    Returns:
        Metric name to value.

    Raises:
        UsageError: Unknown metric, no labelled rows, or f1 without a positive class.
    """
    import numpy as np

    for name in names:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}", cure=suggest(name, METRICS))
    if not len(gold):
        raise UsageError("no labelled rows to score", cure="Evaluate on rows that have labels.")
    assert len(predicted) == len(gold), (len(predicted), len(gold))
    arrays = np.asarray(predicted), np.asarray(gold)
    return {name: float(METRICS[name].function(*arrays, positive)) for name in names}


def selection_value(
    scores: Mapping[str, float], names: Sequence[str], select: Literal["first", "mean"]
) -> float:
    """Returns the number by which the best model is chosen; more is better.

    Args:
        scores: Metric name to value.
        names: The task's metrics.
        select: By the first metric, or by the mean of all. Metrics where less is better count
            negatively.
    """
    chosen = names if select == "mean" else names[:1]
    values = [scores[n] if METRICS[n].higher_is_better else -scores[n] for n in chosen]
    return math.fsum(values) / len(values)


def bootstrap_interval(
    score: Callable[["np.ndarray", "np.ndarray"], dict[str, float]],
    predicted: "np.ndarray",
    gold: "np.ndarray",
    draws: int = 200,
) -> dict[str, tuple[float, float]]:
    """Returns the bounds of the middle 95 % of each metric over resampled rows.

    Args:
        score: From (N,) predictions and (N,) gold labels to a value per metric.
        predicted: (N,) predictions.
        gold: (N,) gold labels.
        draws: How often N rows are drawn with replacement, always with the same seed.
    """
    import numpy as np

    rows = np.random.default_rng(0).integers(0, len(gold), (draws, len(gold)))
    scores = [score(predicted[row], gold[row]) for row in rows]
    bounds = {name: np.quantile([s[name] for s in scores], [0.025, 0.975]) for name in scores[0]}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def _accuracy(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    return float((predicted == gold).mean())


def _f1(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    from sklearn.metrics import f1_score

    if positive is None:
        raise UsageError("f1 needs a positive class", cure="Name it with task.positive.")
    return float(f1_score(gold, predicted, labels=[positive], average="macro", zero_division=0.0))


def _macro_f1(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The mean F1 of all classes that occur in predictions or gold labels."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0.0))


def _matthews(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    from sklearn.metrics import matthews_corrcoef

    if len({*gold.tolist(), *predicted.tolist()}) < 2:
        return 0.0
    return float(matthews_corrcoef(gold, predicted))


def _mse(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    return float(((predicted - gold) ** 2).mean())


def _correlate(
    function: Literal["pearsonr", "spearmanr"],
    predicted: "np.ndarray",
    gold: "np.ndarray",
    positive: str | None,
) -> float:
    import numpy as np
    from scipy import stats

    if len(gold) < 2 or not np.isfinite((predicted, gold)).all():
        return 0.0
    # SciPy warns of constant and of nearly constant input; the result is checked below.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        value = float(getattr(stats, function)(predicted, gold)[0])
    return value if math.isfinite(value) else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, "classes"),
    "f1": Metric(_f1, "classes"),
    "macro_f1": Metric(_macro_f1, "classes"),
    "matthews": Metric(_matthews, "classes"),
    "pearson": Metric(partial(_correlate, "pearsonr"), "scores"),
    "spearman": Metric(partial(_correlate, "spearmanr"), "scores"),
    "mse": Metric(_mse, "scores", higher_is_better=False),
}
"""All metrics, by the name that a recipe gives under task.metrics."""
