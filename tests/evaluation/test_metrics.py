"""Every metric equals its formula, written out in numpy, and is 0 where that divides by zero."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.metrics import METRICS, compute_metrics
from task_formats import UsageError

NAMES = ("no", "maybe", "yes")


@st.composite
def classes(draw, names=NAMES):
    """Predictions and truth: two sequences of N class names."""
    size = draw(st.integers(1, 30))
    drawn = st.lists(st.sampled_from(names), min_size=size, max_size=size)
    return np.array(draw(drawn)), np.array(draw(drawn))


@st.composite
def scores(draw):
    """Predictions and truth: two sequences of N numbers, with ties."""
    size = draw(st.integers(1, 30))
    value = st.integers(-20, 20).map(lambda number: number / 4) | st.floats(-1e3, 1e3, width=32)
    drawn = st.lists(value, min_size=size, max_size=size)
    return np.array(draw(drawn), float), np.array(draw(drawn), float)


def f1_of(name, predicted, gold):
    both = np.sum((predicted == name) & (gold == name))
    total = np.sum(predicted == name) + np.sum(gold == name)
    return 2 * both / total if total else 0.0


def correlation(x, y):
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x * x)) * np.sqrt(np.sum(y * y))
    return np.sum(x * y) / scale if scale else 0.0


def ranks(values):
    """The rank of each value; ties share their mean rank."""
    return np.array([np.sum(values < v) + (np.sum(values == v) - 1) / 2 for v in values])


@given(classes())
def test_accuracy_and_f1(drawn):
    predicted, gold = drawn
    result = compute_metrics(["accuracy", "f1", "macro_f1"], predicted, gold, "yes")
    occurring = sorted(set(predicted) | set(gold))
    expected = {
        "accuracy": np.mean(predicted == gold),
        "f1": f1_of("yes", predicted, gold),
        "macro_f1": np.mean([f1_of(name, predicted, gold) for name in occurring]),
    }
    assert result == pytest.approx(expected, abs=1e-12)


@given(classes(NAMES[::2]))
def test_matthews_of_two_classes(drawn):
    predicted, gold = drawn
    table = [[np.sum((predicted == p) & (gold == g)) for g in NAMES[::2]] for p in NAMES[::2]]
    (tn, fn), (fp, tp) = table
    product = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    expected = (tp * tn - fp * fn) / np.sqrt(product) if product else 0.0
    assert compute_metrics(["matthews"], predicted, gold)["matthews"] == pytest.approx(
        expected, abs=1e-12
    )


@given(classes())
def test_matthews_of_more_is_a_correlation_of_indicators(drawn):
    predicted, gold = drawn
    x, y = (np.array([[a == name for name in NAMES] for a in side], float) for side in drawn)
    x, y = x - x.mean(0), y - y.mean(0)
    scale = np.sqrt(np.sum(x * x)) * np.sqrt(np.sum(y * y))
    expected = np.sum(x * y) / scale if scale else 0.0
    assert compute_metrics(["matthews"], predicted, gold)["matthews"] == pytest.approx(
        expected, abs=1e-9
    )


@given(scores())
def test_correlations_and_squared_error(drawn):
    predicted, gold = drawn
    result = compute_metrics(["spearman", "mse"], predicted, gold)
    assert result["spearman"] == pytest.approx(correlation(ranks(predicted), ranks(gold)), abs=1e-9)
    assert result["mse"] == pytest.approx(np.mean((predicted - gold) ** 2), rel=1e-9)
    # If the spread is within rounding error, formulas differ.
    if min(np.ptp(predicted), np.ptp(gold)) > 1e-6 or not np.ptp(predicted) * np.ptp(gold):
        pearson = compute_metrics(["pearson"], predicted, gold)["pearson"]
        assert pearson == pytest.approx(correlation(predicted, gold), abs=1e-6)


@given(scores(), st.floats(0.1, 10), st.floats(-10, 10))
def test_a_correlation_ignores_scale_and_offset(drawn, scale, offset):
    predicted, gold = drawn
    if np.ptp(predicted) > 1e-3 and np.ptp(gold) > 1e-3:
        before, after = (
            compute_metrics(["pearson"], values, gold)["pearson"]
            for values in (predicted, predicted * scale + offset)
        )
        assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "predicted", "gold"),
    [
        ("matthews", ["a", "a"], ["a", "b"]),
        ("matthews", ["a", "a"], ["a", "a"]),
        ("f1", ["a", "a"], ["a", "a"]),
        ("pearson", [1.0, 1.0], [1.0, 2.0]),
        ("pearson", [1.0, 2.0], [1.0, 1.0]),
        ("pearson", [1.0], [1.0]),
        ("pearson", [1.0, float("nan")], [1.0, 2.0]),
        ("pearson", [1.0, float("inf")], [1.0, 2.0]),
        ("spearman", [3.0, 3.0, 3.0], [1.0, 2.0, 3.0]),
        ("spearman", [1.0], [1.0]),
    ],
)
def test_what_would_divide_by_zero_is_zero_without_a_warning(metric, predicted, gold):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_metrics([metric], predicted, gold, "b") == {metric: 0.0}


def test_almost_constant_predictions_give_no_warning():
    predicted = [1.0, 1.0 + 1e-15, 1.0]
    assert -1 <= compute_metrics(["pearson"], predicted, [1.0, 2.0, 3.0])["pearson"] <= 1


def test_every_metric_is_a_plain_float_and_best_for_perfect_predictions():
    for name, metric in METRICS.items():
        answers = ["a", "b"] if metric.labels == "classes" else [1.0, 2.0]
        scores = compute_metrics([name], answers, answers, "b")
        assert type(scores[name]) is float
        assert scores == {name: pytest.approx(1.0 if metric.higher_is_better else 0.0)}


def test_metrics_keep_their_order():
    answers = ["a", "b"]
    assert list(compute_metrics(["matthews", "accuracy"], answers, answers)) == [
        "matthews",
        "accuracy",
    ]


@pytest.mark.parametrize(
    ("metrics", "gold", "what"),
    [
        (["acuracy"], ["a"], r"unknown metric 'acuracy'\nDid you mean 'accuracy'\?"),
        (["accuracy"], [], "no labelled rows to score"),
        (["f1"], ["a"], r"f1 needs a positive class\n.*task\.positive"),
    ],
)
def test_mistakes_are_refused(metrics, gold, what):
    with pytest.raises(UsageError, match=what):
        compute_metrics(metrics, gold, gold)
