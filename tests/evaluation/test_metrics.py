"""Every metric equals its formula, written out in numpy, and is 0 where that divides by zero."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from finetune.evaluation.metrics import (
    METRICS,
    Probabilities,
    compute_metrics,
    score_predictions,
    selection_value,
)
from task_formats import FORMATS, Classes, MultiLabel, Prediction, Task, UsageError

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
    names = ["accuracy", "f1", "macro_f1", "weighted_f1", "balanced_accuracy"]
    result = compute_metrics(names, predicted, gold, "yes")
    occurring = sorted(set(predicted) | set(gold))
    recalls = [np.mean(predicted[gold == name] == name) for name in sorted(set(gold))]
    expected = {
        "weighted_f1": sum(np.mean(gold == name) * f1_of(name, predicted, gold) for name in NAMES),
        "balanced_accuracy": np.mean(recalls),
        "accuracy": np.mean(predicted == gold),
        "f1": f1_of("yes", predicted, gold),
        "macro_f1": np.mean([f1_of(name, predicted, gold) for name in occurring]),
    }
    assert result == pytest.approx(expected, abs=1e-12)


@given(classes())
def test_counted_metrics_equal_those_of_scikit_learn(drawn):
    """To the last bit, so that scores do not depend on how they are computed."""
    predicted, gold = drawn
    names = ["f1", "macro_f1", "weighted_f1", "matthews"]
    several = len({*predicted, *gold}) > 1  # Else scikit-learn warns and returns 0.
    assert compute_metrics(names, predicted, gold, "yes") == {
        "f1": f1_score(gold, predicted, labels=["yes"], average="macro", zero_division=0.0),
        "macro_f1": f1_score(gold, predicted, average="macro", zero_division=0.0),
        "weighted_f1": f1_score(gold, predicted, average="weighted", zero_division=0.0),
        "matthews": matthews_corrcoef(gold, predicted) if several else 0.0,
    }


@given(st.data())
def test_counted_metrics_of_several_labels_equal_those_of_scikit_learn(data):
    size, labels = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 12))
    flags = st.lists(
        st.lists(st.booleans(), min_size=labels, max_size=labels), min_size=size, max_size=size
    )
    predicted, gold = np.array(data.draw(flags)), np.array(data.draw(flags))
    for average in ("micro", "macro", "weighted"):
        name = f"{average}_f1"
        expected = f1_score(gold, predicted, average=average, zero_division=0.0)
        assert compute_metrics([name], predicted, gold) == {name: expected}
        whole = predicted.astype(np.int64), gold.astype(np.int64)
        assert compute_metrics([name], *whole) == {name: expected}


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
    result = compute_metrics(["spearman", "mse", "mae"], predicted, gold)
    assert result["mae"] == pytest.approx(np.mean(np.abs(predicted - gold)), rel=1e-9)
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


PROBABILITY_METRICS = ("roc_auc", "average_precision", "log_loss", "brier", "ece")


@st.composite
def probabilities(draw, names):
    """(N, C) probabilities with ties, and N gold class names."""
    size = draw(st.integers(1, 20))
    row = st.lists(st.integers(0, 4), min_size=len(names), max_size=len(names)).filter(any)
    table = np.array(draw(st.lists(row, min_size=size, max_size=size)), float)
    gold = draw(st.lists(st.sampled_from(names), min_size=size, max_size=size))
    return Probabilities(names, table / table.sum(1, keepdims=True)), np.array(gold)


def roc_auc_of(probability, gold):
    """The share of pairs of a positive and a negative row that are in the right order."""
    pairs = probability[gold][:, None] - probability[~gold]
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


def average_precision_of(probability, gold):
    """The precision at the threshold of each positive row, averaged."""
    return np.mean([gold[probability >= value].mean() for value in probability[gold]])


@pytest.mark.parametrize("names", [NAMES, NAMES[::2]])
@given(data=st.data())
def test_metrics_of_probabilities(names, data):
    (_, table), gold = drawn = data.draw(probabilities(names))
    predicted = np.array(names)[table.argmax(1)]
    positive = names[-1] if len(names) == 2 else None
    result = compute_metrics(PROBABILITY_METRICS, predicted, gold, positive, drawn[0])
    columns = [(table[:, k], gold == name) for k, name in enumerate(names)]
    counted = columns[1:] if len(names) == 2 else columns
    areas = [roc_auc_of(*column) for column in columns if 0 < column[1].sum() < len(gold)]
    precisions = [average_precision_of(*column) for column in counted if column[1].any()]
    own = table[np.arange(len(gold)), [names.index(name) for name in gold]]
    confidence, correct = table.max(1), predicted == gold
    bins = [np.isclose(np.ceil(confidence * 10 - 1e-9), k) for k in range(1, 11)]
    expected = {
        "roc_auc": np.mean(areas) if areas else 0.0,
        "average_precision": np.mean(precisions) if precisions else 0.0,
        "log_loss": np.mean(-np.log(np.maximum(own, np.finfo(float).tiny))),
        "brier": np.mean(sum((p - y) ** 2 for p, y in counted)),
        "ece": sum(abs(np.sum(confidence[rows] - correct[rows])) for rows in bins) / len(gold),
    }
    assert result == pytest.approx(expected, abs=1e-9)


@given(data=st.data())
def test_several_labels_are_scored_like_scikit_learn(data):
    size = data.draw(st.integers(1, 9))
    flags = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=size, max_size=size)
    gold, predicted = np.array(data.draw(flags)), np.array(data.draw(flags))
    values = st.lists(st.integers(0, 4), min_size=3, max_size=3)
    table = np.array(data.draw(st.lists(values, min_size=size, max_size=size))) / 4
    names = ("sun", "rain", "wind")
    labels = MultiLabel(Classes.of(names))
    metrics = tuple(name for name, metric in METRICS.items() if "multi_label" in metric.labels)
    task = Task(FORMATS["classification"], {"text": "text"}, labels, metrics)
    predictions = [
        Prediction("", labels.name(row), tuple(scores))
        for row, scores in zip(predicted, table.tolist(), strict=True)
    ]
    result = score_predictions(task, predictions, [tuple(map(float, row)) for row in gold])
    both, either = (predicted & gold).sum(0), predicted.sum(0) + gold.sum(0)
    f1 = np.divide(2 * both, either, out=np.zeros(3), where=either > 0)
    support = gold.sum(0)
    columns = [(table[:, k], gold[:, k]) for k in range(3)]
    areas = [roc_auc_of(*column) for column in columns if 0 < column[1].sum() < size]
    precisions = [average_precision_of(*column) for column in columns if column[1].any()]
    expected = {
        "accuracy": np.mean([tuple(p) == tuple(g) for p, g in zip(predicted, gold, strict=True)]),
        "micro_f1": 2 * both.sum() / either.sum() if either.sum() else 0.0,
        "macro_f1": f1.mean(),
        "weighted_f1": (f1 * support).sum() / support.sum() if support.sum() else 0.0,
        "roc_auc": np.mean(areas) if areas else 0.0,
        "average_precision": np.mean(precisions) if precisions else 0.0,
    }
    assert result == pytest.approx(expected, abs=1e-9)


def test_average_precision_counts_the_positive_class():
    table = Probabilities(["yes", "no"], np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]))
    gold = ["yes", "no", "yes"]
    values = [
        compute_metrics(["average_precision"], gold, gold, name, table)["average_precision"]
        for name in ("yes", "no")
    ]
    assert values == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])


def test_of_three_classes_only_the_positive_one_counts_if_there_is_one():
    table = np.array([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.5, 0.1, 0.4], [0.2, 0.6, 0.2]])
    gold = np.array(["no", "yes", "yes", "maybe"])
    metrics = ["roc_auc", "average_precision"]
    found = compute_metrics(metrics, gold, gold, "no", Probabilities(NAMES, table))
    is_no = gold == "no"
    assert found == {
        "roc_auc": pytest.approx(roc_auc_of(table[:, 0], is_no)),
        "average_precision": pytest.approx(average_precision_of(table[:, 0], is_no)),
    }


def test_predictions_are_scored_with_the_probabilities_that_they_have():
    metrics = ("accuracy", "log_loss")
    columns = {"context": "text", "choices": ["a", "b", "c"]}
    task = Task(FORMATS["multiple_choice"], columns, Classes.of("ABC"), metrics)
    # The second row has two choices.
    predictions = [Prediction("0", "A", (0.5, 0.3, 0.2)), Prediction("1", "A", (0.75, 0.25))]
    expected = {"accuracy": 0.5, "log_loss": -np.log([0.5, 0.25]).mean()}
    assert score_predictions(task, predictions, [0, 1]) == pytest.approx(expected)
    with pytest.raises(UsageError, match="log_loss needs a probability of every class"):
        score_predictions(task, [Prediction("0", "A", (-3.2,))], [0])


@pytest.mark.parametrize("name", METRICS)
def test_the_better_model_is_selected(name):
    answers = [1.0, 2.0] if "scores" in METRICS[name].labels else ["a", "b"]
    values = []
    for predicted, certain in ((answers, np.eye(2)), (answers[::-1], np.array([[0.2, 0.8]] * 2))):
        table = Probabilities(["a", "b"], certain)
        scores = compute_metrics([name], predicted, answers, "b", table)
        values.append(selection_value(scores, [name], "first"))
    assert values[0] > values[1]


def test_almost_constant_predictions_give_no_warning():
    predicted = [1.0, 1.0 + 1e-15, 1.0]
    assert -1 <= compute_metrics(["pearson"], predicted, [1.0, 2.0, 3.0])["pearson"] <= 1


def test_every_metric_is_a_plain_float_and_best_for_perfect_predictions():
    for name, metric in METRICS.items():
        answers = [1.0, 2.0] if "scores" in metric.labels else ["a", "b"]
        scores = compute_metrics(
            [name], answers, answers, "b", Probabilities(["a", "b"], np.eye(2))
        )
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
