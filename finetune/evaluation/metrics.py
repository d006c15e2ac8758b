"""The metrics of a task: one table, to which a new metric is added by one entry.

scikit-learn and SciPy are imported when a metric is computed, so that recipes can look up the
table without loading them.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from task_formats import Classes, Label, MultiLabel, Prediction, Task, UsageError, suggest
from task_formats.labels import LabelKind

if TYPE_CHECKING:
    import numpy as np

Answers = Sequence[str | float]
"""N class names, or N scores."""
CALIBRATION_BINS = 10
"""Bins of equal width for the expected calibration error."""


class Metric(NamedTuple):
    """One row of the table of metrics."""

    function: Callable[["np.ndarray", "np.ndarray", str | None], float]
    """From (N,) predictions, (N,) gold labels and the positive class to a value."""
    labels: tuple[LabelKind, ...]
    """The kinds of label that the metric is for. With several labels at once ("multi_label"),
    predictions and gold labels are (N, C): 1 where a label applies."""
    higher_is_better: bool = True
    reads_probabilities: bool = False
    """True if `function` takes (N, C) probabilities and (N, C) gold labels, 1 at the true class.
    If there is a positive class, it is the last column."""


class Probabilities(NamedTuple):
    """The probability of every class."""

    classes: Sequence[str]
    """C class names."""
    table: "np.ndarray"
    """(N, C), 0 for choices that a row does not have."""


def score_predictions(
    task: Task, predictions: Iterable[Prediction], gold: Sequence[Label]
) -> dict[str, float]:
    """Computes the metrics of a task.

    Args:
        task: Gives the metrics, the names of classes and the positive class.
        predictions: N predictions.
        gold: N true labels, as `Labels.parse` returns them.

    Returns:
        Metric name to value.

    Raises:
        UsageError: As `compute_metrics`.
    """
    import numpy as np

    table = None
    if any(METRICS[name].reads_probabilities for name in task.metrics if name in METRICS):
        table = np.zeros((len(gold), task.labels.num_outputs))
    predicted: Any = []
    for n, prediction in enumerate(predictions):
        predicted.append(prediction.label)
        # A prompt with a threshold has one log-probability instead of a probability per class.
        if table is not None and len(prediction.scores) > 1:
            table[n, : len(prediction.scores)] = prediction.scores
        else:
            table = None
    names = task.labels.names
    probabilities = Probabilities(names, table) if table is not None else None
    ordered = names if isinstance(task.labels, Classes) and task.labels.ordered else ()
    if isinstance(task.labels, MultiLabel):
        predicted = np.array([[name in labels for name in names] for labels in predicted])
        answers = np.array(gold) == 1
    else:
        answers = np.array([task.labels.name(label) for label in gold])
    positive = task.positive_class
    return compute_metrics(task.metrics, predicted, answers, positive, probabilities, ordered)


def compute_metrics(
    names: Sequence[str],
    predicted: "Answers | np.ndarray",
    gold: "Answers | np.ndarray",
    positive: str | None = None,
    probabilities: Probabilities | None = None,
    ordered: Sequence[str] = (),
) -> dict[str, float]:
    """Computes metrics by name.

    No metric is undefined: where one would divide by zero (a correlation of a constant, F1 of a
    class that does not occur, ROC AUC of one class) it is 0.

    Args:
        names: Keys of METRICS.
        predicted: N predicted class names or scores, or (N, C) booleans for several labels at once.
        gold: N true class names or scores, or (N, C) booleans.
        positive: The class that f1 counts.
        probabilities: Of every class; None if they are not known.
        ordered: Names of classes in order; metrics of scores then take a class as its position.

    Returns:
        Metric name to value.

    Raises:
        UsageError: Unknown metric, no labelled rows, f1 without a positive class, or no
            probabilities for a metric that reads them.
    """
    import numpy as np

    for name in names:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}", cure=suggest(name, METRICS))
        if METRICS[name].reads_probabilities and probabilities is None:
            what = f"{name} needs a probability of every class, and there is none"
            raise UsageError(what, cure="Choose other task.metrics.")
    if not len(gold):
        raise UsageError("no labelled rows to score", cure="Evaluate on rows that have labels.")
    assert len(predicted) == len(gold), (len(predicted), len(gold))
    arrays = np.asarray(predicted), np.asarray(gold)
    values = {}
    for name in names:
        function = METRICS[name].function
        if METRICS[name].reads_probabilities and probabilities is not None:
            tables = _order_columns(probabilities, arrays[1], positive)
            values[name] = float(function(*tables, positive))
        elif ordered and "scores" in METRICS[name].labels:
            position = {label: float(k) for k, label in enumerate(ordered)}
            first, second = (np.array([position[label] for label in side]) for side in arrays)
            values[name] = float(function(first, second, positive))
        else:
            values[name] = float(function(*arrays, positive))
    return values


def _order_columns(
    probabilities: Probabilities, gold: "np.ndarray", positive: str | None
) -> tuple["np.ndarray", "np.ndarray"]:
    """(N, C) probabilities and gold labels; the positive class is the last column."""
    import numpy as np

    classes = np.array(probabilities.classes)
    if gold.ndim == 1:
        gold = gold[:, None] == classes
    order = np.argsort(classes == positive, kind="stable")
    return probabilities.table[:, order], gold[:, order].astype(float)


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
    return float((predicted == gold).reshape(len(gold), -1).all(1).mean())


def _count_classes(predicted: "np.ndarray", gold: "np.ndarray") -> "np.ndarray":
    """(3, C) rows of each class or label: predicted and true, predicted, true.

    scikit-learn checks its input for longer than it counts, and a bootstrap scores thousands of
    small samples.
    """
    import numpy as np

    if gold.ndim > 1:
        both = (predicted & gold).sum(0)
        return np.array([both, predicted.sum(0), gold.sum(0)], float)
    # Of the classes that occur, in alphabetical order.
    classes, indices = np.unique([predicted, gold], return_inverse=True)
    first, second = indices.reshape(2, -1)
    sides = first[first == second], first, second
    return np.array([np.bincount(side, minlength=len(classes)) for side in sides], float)


def _divide_f1(both: "np.ndarray", predicted: "np.ndarray", gold: "np.ndarray") -> "np.ndarray":
    """(C,) F1 from counts of rows; 0 for a class that does not occur."""
    import numpy as np

    either = predicted + gold
    return np.divide(2 * both, either, out=np.zeros_like(either), where=either > 0)


def _f1(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    if positive is None:
        raise UsageError("f1 needs a positive class", cure="Name it with task.positive.")
    return _micro_f1((predicted == positive)[:, None], (gold == positive)[:, None], None)


def _macro_f1(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The mean F1 of all classes that occur in predictions or gold labels, or of several labels."""
    return float(_divide_f1(*_count_classes(predicted, gold)).mean())


def _micro_f1(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """F1 of all pairs of a row and a label."""
    return float(_divide_f1(*_count_classes(predicted, gold).sum(1, keepdims=True))[0])


def _weighted_f1(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The mean F1 of the classes, weighted by their number of gold labels."""
    import numpy as np

    counts = _count_classes(predicted, gold)
    return float(np.average(_divide_f1(*counts), weights=counts[2])) if counts[2].any() else 0.0


def _balanced_accuracy(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The mean recall of all classes in the gold labels."""
    import numpy as np

    return float(np.mean([(predicted[gold == name] == name).mean() for name in np.unique(gold)]))


def _matthews(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The correlation of predicted and gold classes (Gorodkin 2004)."""
    import numpy as np

    counts = _count_classes(predicted, gold)
    rows, (both, first, second) = len(gold), counts
    covariance = both.sum() * rows - first @ second
    product = (rows**2 - first @ first) * (rows**2 - second @ second)
    return float(covariance / np.sqrt(product)) if product else 0.0


def _mse(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    return float(((predicted - gold) ** 2).mean())


def _mae(predicted: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    return float(abs(predicted - gold).mean())


def _roc_auc(probability: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """Of the positive class, or else the mean over all classes, each against the others."""
    from sklearn.metrics import roc_auc_score

    if positive is not None:
        probability, gold = probability[:, -1:], gold[:, -1:]
    defined = (gold.min(0) < 1) & (gold.max(0) > 0)
    if not defined.any():
        return 0.0
    return float(roc_auc_score(gold[:, defined], probability[:, defined], average="macro"))


def _average_precision(
    probability: "np.ndarray", gold: "np.ndarray", positive: str | None
) -> float:
    """Of the positive class, or else the mean over all classes in the gold labels."""
    from sklearn.metrics import average_precision_score

    if positive is not None:
        probability, gold = probability[:, -1:], gold[:, -1:]
    occurs = gold.max(0) > 0
    if not occurs.any():
        return 0.0
    return float(average_precision_score(gold[:, occurs], probability[:, occurs], average="macro"))


def _log_loss(probability: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The mean negative log-probability of the true class, in nats."""
    import numpy as np

    # A probability of 0 would be infinitely wrong.
    true_class = (probability * gold).sum(1).clip(np.finfo(float).tiny)
    return float(-np.log(true_class).mean())


def _brier(probability: "np.ndarray", gold: "np.ndarray", positive: str | None) -> float:
    """The mean squared error of the positive class; of more than two classes summed over all."""
    errors = ((probability - gold) ** 2).sum(1).mean()
    return float(errors / 2 if gold.shape[1] == 2 else errors)


def _expected_calibration_error(
    probability: "np.ndarray", gold: "np.ndarray", positive: str | None
) -> float:
    """The mean gap between confidence and accuracy (Guo et al. 2017, equation 5)."""
    import numpy as np

    confidence = probability.max(1)
    correct = np.take_along_axis(gold, probability.argmax(1)[:, None], 1)[:, 0]
    # A bin contains its upper bound.
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence - correct)
    return float(abs(gaps).sum() / len(gold))


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


_ALL_CLASSES: tuple[LabelKind, ...] = ("classes", "multi_label")

METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, _ALL_CLASSES),
    "f1": Metric(_f1, ("classes",)),
    "micro_f1": Metric(_micro_f1, ("multi_label",)),
    "macro_f1": Metric(_macro_f1, _ALL_CLASSES),
    "weighted_f1": Metric(_weighted_f1, _ALL_CLASSES),
    "balanced_accuracy": Metric(_balanced_accuracy, ("classes",)),
    "matthews": Metric(_matthews, ("classes",)),
    "roc_auc": Metric(_roc_auc, _ALL_CLASSES, reads_probabilities=True),
    "average_precision": Metric(_average_precision, _ALL_CLASSES, reads_probabilities=True),
    "log_loss": Metric(_log_loss, ("classes",), False, True),
    "brier": Metric(_brier, ("classes",), False, True),
    "ece": Metric(_expected_calibration_error, ("classes",), False, True),
    "pearson": Metric(partial(_correlate, "pearsonr"), ("scores",)),
    "spearman": Metric(partial(_correlate, "spearmanr"), ("scores",)),
    "mse": Metric(_mse, ("scores",), higher_is_better=False),
    "mae": Metric(_mae, ("scores",), higher_is_better=False),
}
"""All metrics, by the name that a recipe gives under task.metrics."""
