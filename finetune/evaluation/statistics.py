"""Statistics of predictions: classes, calibration, thresholds, intervals, and tests of two models.

In all signatures N is the number of labelled rows and C the number of classes or choices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import CALIBRATION_BINS

Array = NDArray[np.float64]
MIN_PROBABILITY = 1e-300
"""Smaller probabilities of an own label count as this, so that its logarithm is finite."""
_TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature. If every row is correct, the best one would be 0."""


class Interval(NamedTuple):
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class ClassScores(NamedTuple):
    """Scores of one class against all others, or of one of several labels."""

    name: str
    precision: float
    recall: float
    f1: float
    gold: int
    """Rows with this label."""
    predicted: int


class ReliabilityBin(NamedTuple):
    """Predictions of similar confidence."""

    low: float
    high: float
    rows: int
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float


class Calibration(NamedTuple):
    """How far probabilities can be trusted."""

    bins: list[ReliabilityBin]
    error: float
    """Expected calibration error."""
    temperature: float
    """Fitted on all rows."""
    corrected_error: float
    """Expected calibration error with a temperature fitted on one half of the rows and applied to
    the other half, and the reverse."""


class ThresholdCurve(NamedTuple):
    """Scores of two classes as functions of the threshold, each (T,)."""

    threshold: Array
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    true_negatives: NDArray[np.int64]
    accuracy: Array
    precision: Array
    recall: Array
    f1: Array


class McNemarTest(NamedTuple):
    """Rows on which exactly one of two models is correct."""

    only_first: int
    only_second: int
    p_value: float


class Difference(NamedTuple):
    """A metric of a second model minus that of a first one."""

    value: float
    low: float
    high: float
    p_value: float


Score = Callable[[NDArray[np.int64]], dict[str, float]]
"""From the indices of M rows, which may repeat, to a value per metric over these rows."""


def count_confusions(predicted: np.ndarray, gold: np.ndarray, classes: int) -> NDArray[np.int64]:
    """Returns a (C, C) matrix of counts: row gold class, column predicted class."""
    from sklearn.metrics import confusion_matrix

    matrix: NDArray[np.int64] = confusion_matrix(gold, predicted, labels=np.arange(classes))
    return matrix


def score_classes(
    predicted: np.ndarray, gold: np.ndarray, names: Sequence[str]
) -> list[ClassScores]:
    """Returns precision, recall and F1 of every class; 0 where one would divide by zero.

    Args:
        predicted: (N,) predicted class indices, or (N, C) 1 where one of several labels applies.
        gold: The true ones, in the same form.
        names: Names of the C classes or labels.
    """
    from sklearn.metrics import precision_recall_fscore_support

    labels = np.arange(len(names))
    columns = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    counts = (
        predicted.sum(0) if predicted.ndim > 1 else np.bincount(predicted, minlength=len(names))
    )
    return [
        ClassScores(name, float(precision), float(recall), float(f1), int(count), int(found))
        for name, precision, recall, f1, count, found in zip(names, *columns, counts, strict=True)
    ]


def average_scores(
    predicted: np.ndarray, gold: np.ndarray, names: Sequence[str]
) -> list[ClassScores]:
    """Returns the means of what `score_classes` returns, and for several labels the micro average.

    The arguments are those of `score_classes`. Of single classes the micro average is the accuracy.
    """
    from sklearn.metrics import precision_recall_fscore_support

    options: dict[str, Any] = {"labels": np.arange(len(names)), "zero_division": 0}
    several = gold.ndim > 1
    totals = (int(gold.sum()), int(predicted.sum())) if several else (len(gold), len(gold))
    found = []
    for average in ("micro", "macro", "weighted") if several else ("macro", "weighted"):
        values = precision_recall_fscore_support(gold, predicted, average=average, **options)[:3]
        precision, recall, f1 = map(float, values)
        found.append(ClassScores(f"{average} average", precision, recall, f1, *totals))
    return found


def proportion_interval(successes: int, total: int) -> Interval:
    """Returns a proportion with its Wilson score interval."""
    from scipy.stats import binomtest

    bounds = binomtest(successes, total).proportion_ci(method="wilson")
    return Interval(successes / total, float(bounds.low), float(bounds.high))


def mean_interval(values: np.ndarray, draws: int = 1000) -> Interval:
    """Returns a mean with its percentile bootstrap interval; draws are the same every time."""
    generator, count = np.random.default_rng(0), len(values)
    means = [values[generator.integers(0, count, count)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def reliability_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS
) -> list[ReliabilityBin]:
    """Groups rows by confidence into bins of equal width; empty bins are left out.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2. A bin contains its
    upper bound.

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether the prediction is correct.
        bins: Number of bins.
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    result = []
    for k in np.unique(place).tolist():
        rows = place == k
        means = float(confidence[rows].mean()), float(correct[rows].mean())
        result.append(ReliabilityBin(k / bins, (k + 1) / bins, int(rows.sum()), *means))
    return result


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Returns the mean of |accuracy - confidence| over all rows (Guo et al. 2017, equation 5)."""
    total = sum(group.rows for group in bins)
    return sum(group.rows * abs(group.accuracy - group.confidence) for group in bins) / total


def fit_temperature(log_probabilities: np.ndarray, gold: np.ndarray) -> float:
    """Returns the temperature T that minimizes the loss of softmax(logits / T).

    Guo et al. 2017, section 4.2. Log-probabilities serve as logits: they differ from them by a
    constant per row. The loss is convex in 1 / T.

    Args:
        log_probabilities: (N, C); -inf for choices that a row does not have.
        gold: (N,) class or choice index.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    own = log_probabilities[np.arange(len(gold)), gold]

    def loss(inverse: float) -> float:
        return float(np.mean(logsumexp(log_probabilities * inverse, axis=1) - own * inverse))

    low, high = _TEMPERATURES
    best = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded")
    return float(1 / best.x)


def calibrate(
    probabilities: np.ndarray, gold: np.ndarray, bins: int = CALIBRATION_BINS
) -> Calibration:
    """Measures calibration and fits a temperature.

    Args:
        probabilities: (N, C); 0 for choices that a row does not have.
        gold: (N,) class or choice index.
        bins: Number of bins of the reliability diagram.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    rows = np.arange(len(gold))
    logs[rows, gold] = np.maximum(logs[rows, gold], np.log(MIN_PROBABILITY))
    halves = rows % 2
    scaled = np.array(probabilities)
    for half in (0, 1) if len(gold) > 1 else ():
        fitted = fit_temperature(logs[halves != half], gold[halves != half])
        scaled[halves == half] = _softmax(logs[halves == half] / fitted)
    before, after = (
        reliability_bins(table.max(axis=1), table.argmax(axis=1) == gold, bins)
        for table in (probabilities, scaled)
    )
    return Calibration(
        before,
        expected_calibration_error(before),
        fit_temperature(logs, gold),
        expected_calibration_error(after),
    )


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the (N, C) probabilities with their logits divided by a temperature."""
    with np.errstate(divide="ignore"):
        return _softmax(np.log(probabilities) / temperature)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    table: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return table


def threshold_curve(
    probability: np.ndarray, positive: np.ndarray, thresholds: np.ndarray | None = None
) -> ThresholdCurve:
    """Scores two classes at several thresholds; NaN where one would divide by zero.

    Args:
        probability: (N,) probability of the positive class; a row is predicted positive if it is
            at least the threshold.
        positive: (N,) whether the row's label is the positive class.
        thresholds: (T,) in increasing order [default: 0, 0.01, ..., 1].
    """
    grid = np.arange(101) / 100 if thresholds is None else thresholds
    # Rows at or above a threshold are those behind its place in the sorted order.
    found = np.sort(probability[positive]), np.sort(probability[~positive])
    hits, alarms = (len(values) - np.searchsorted(values, grid) for values in found)
    misses, rest = len(found[0]) - hits, len(found[1]) - alarms
    return ThresholdCurve(
        grid, hits, alarms, misses, rest,
        (hits + rest) / len(probability),
        _divide(hits, hits + alarms),
        _divide(hits, hits + misses),
        _divide(2 * hits, 2 * hits + alarms + misses),
    )  # fmt: skip


def _divide(above: np.ndarray, below: np.ndarray) -> Array:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def find_label_errors(probabilities: np.ndarray, gold: np.ndarray) -> NDArray[np.int64]:
    """Finds rows whose label is probably wrong, from out-of-sample probabilities.

    A row is returned if another class is the most probable one and has at least the mean
    probability of that class over the rows labelled with it: the confident joint of Northcutt et
    al. 2021, "Confident Learning", section 3.1.

    Args:
        probabilities: (N, C) from a model that was not trained on these rows.
        gold: (N,) class index.

    Returns:
        Indices of the rows, by increasing probability of the own label.
    """
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(gold):
        thresholds[label] = probabilities[gold == label, label].mean()
    rows = np.arange(len(gold))
    best = probabilities.argmax(axis=1)
    suspicious = (best != gold) & (probabilities[rows, best] >= thresholds[best])
    found = np.flatnonzero(suspicious)
    return found[np.argsort(probabilities[found, gold[found]], kind="stable")]


def mcnemar_test(first: np.ndarray, second: np.ndarray) -> McNemarTest:
    """Tests whether two models have the same error rate, with the exact binomial test.

    McNemar 1947; Dietterich 1998 recommends it for two classifiers and one test set.

    Args:
        first: (N,) whether the first model is correct.
        second: (N,) whether the second model is correct, on the same rows.
    """
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = float(binomtest(one, one + other).pvalue) if one + other else 1.0
    return McNemarTest(one, other, p_value)


def paired_bootstrap(
    first: Score, second: Score, rows: int, draws: int = 1000
) -> dict[str, Difference]:
    """Compares two models on the same resampled rows (Koehn 2004; Berg-Kirkpatrick et al. 2012).

    Args:
        first: Computes the metrics of the first model.
        second: Computes the metrics of the second model.
        rows: Number of rows N.
        draws: How often N rows are drawn with replacement, always with the same seed.

    Returns:
        Metric to the difference second - first, the middle 95 % of its draws, and a two-sided
        p-value: twice the share of draws in which the difference is 0 or has the other sign.
    """
    generator = np.random.default_rng(0)
    one, other = first(np.arange(rows)), second(np.arange(rows))
    drawn: dict[str, list[float]] = {name: [] for name in one}
    for _ in range(draws):
        indices = generator.integers(0, rows, rows)
        before, after = first(indices), second(indices)
        for name, values in drawn.items():
            values.append(after[name] - before[name])
    result = {}
    for name, values in drawn.items():
        differences = np.array(values)
        low, high = np.quantile(differences, [0.025, 0.975])
        tails = [(1 + (side <= 0).sum()) / (1 + draws) for side in (differences, -differences)]
        p_value = min(1.0, 2 * float(min(tails)))
        result[name] = Difference(other[name] - one[name], float(low), float(high), p_value)
    return result
