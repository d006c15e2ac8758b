"""Statistics of predictions equal closed forms, scikit-learn and SciPy."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, f1_score, precision_recall_curve

from finetune.evaluation.metrics import METRICS
from finetune.evaluation.statistics import (
    average_scores,
    calibrate,
    count_confusions,
    expected_calibration_error,
    find_label_errors,
    fit_temperature,
    mcnemar_test,
    mean_interval,
    paired_bootstrap,
    proportion_interval,
    reliability_bins,
    score_classes,
    threshold_curve,
)


def draw_labels(logits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Labels that follow the softmax of the logits."""
    return np.array([generator.choice(len(row), p=softmax(row)) for row in logits])


def accuracy(predicted, gold):
    return lambda rows: {"accuracy": float((predicted[rows] == gold[rows]).mean())}


def test_class_scores_are_the_ratios_of_the_confusion_matrix():
    generator = np.random.default_rng(0)
    gold, predicted = generator.integers(0, 4, 200), generator.integers(0, 4, 200)
    predicted[predicted == 2] = 1  # Class c is never predicted.
    matrix = count_confusions(predicted, gold, 4)
    assert matrix.sum() == 200
    for k, scores in enumerate(score_classes(predicted, gold, "abcd")):
        correct, found, present = matrix[k, k], matrix[:, k].sum(), matrix[k].sum()
        assert (scores.name, scores.gold, scores.predicted) == ("abcd"[k], present, found)
        assert scores.precision == pytest.approx(correct / found if found else 0)
        assert scores.recall == pytest.approx(correct / present)
        assert scores.f1 == pytest.approx(2 * correct / (found + present))


@pytest.mark.parametrize("several", [False, True])
def test_averages_of_classes_and_of_several_labels(several):
    generator = np.random.default_rng(1)
    size = (50, 3) if several else 50
    gold, predicted = (generator.integers(0, 2 if several else 3, size) for _ in range(2))
    parts = score_classes(predicted, gold, "abc")
    averages = {item.name.split()[0]: item for item in average_scores(predicted, gold, "abc")}
    rows = [item.gold for item in parts]
    for field in ("precision", "recall", "f1"):
        values = [getattr(item, field) for item in parts]
        assert getattr(averages["macro"], field) == pytest.approx(np.mean(values))
        weighted = np.average(values, weights=rows)
        assert getattr(averages["weighted"], field) == pytest.approx(weighted)
    assert ("micro" in averages) == several
    if several:
        for k, item in enumerate(parts):
            alone = score_classes(predicted[:, k], gold[:, k], ("no", "yes"))[1]
            assert item[1:] == pytest.approx(alone[1:])
        hits = int((gold & predicted).sum())
        assert averages["micro"].precision == pytest.approx(hits / predicted.sum())
        assert averages["micro"].recall == pytest.approx(hits / gold.sum())


def test_the_wilson_interval_has_its_closed_form():
    successes, total, z = 17, 40, stats.norm.ppf(0.975)
    share = successes / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) * z
    interval = proportion_interval(successes, total)
    assert interval.value == share
    assert interval.low == pytest.approx(middle - half / (1 + z * z / total))
    assert interval.high == pytest.approx(middle + half / (1 + z * z / total))


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).exponential(size=2000)
    interval = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_calibration_error_has_its_closed_form():
    confidence = np.array([0.55, 0.6, 0.95, 0.95, 1.0])
    correct = np.array([True, False, True, True, False])
    bins = reliability_bins(confidence, correct)
    assert [group[:3] for group in bins] == [(0.5, 0.6, 2), (0.9, 1.0, 3)]
    expected = 2 / 5 * abs(0.5 - 0.575) + 3 / 5 * abs(2 / 3 - 2.9 / 3)
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_a_temperature_undoes_scaled_logits():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 3)) * 2
    gold = draw_labels(logits, generator)
    overconfident = log_softmax(logits * 2.5, axis=1)
    assert fit_temperature(overconfident, gold) == pytest.approx(2.5, rel=0.1)
    # The derivative of the loss with respect to 1 / T is zero at the minimum.
    inverse = 1 / fit_temperature(overconfident, gold)
    mean = (softmax(overconfident * inverse, axis=1) * overconfident).sum(axis=1)
    assert np.mean(mean - overconfident[np.arange(4000), gold]) == pytest.approx(0, abs=1e-3)
    calibration = calibrate(np.exp(overconfident), gold)
    assert calibration.error > 0.1
    assert calibration.corrected_error < 0.03
    assert calibrate(softmax(logits, axis=1), gold).error < 0.03
    ece = METRICS["ece"].function(np.exp(overconfident), np.eye(3)[gold], None)
    assert calibration.error == pytest.approx(ece)


def test_absent_choices_do_not_count():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(500, 2)) * 3
    gold = draw_labels(logits / 2, generator)
    two = softmax(logits, axis=1)
    four = np.concatenate([two, np.zeros((500, 2))], axis=1)
    assert calibrate(four, gold) == calibrate(two, gold)


def test_probabilities_of_zero_and_one_are_allowed():
    calibration = calibrate(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0, 1, 1]))
    assert calibration.error == pytest.approx(1 / 3)
    assert math.isfinite(calibration.temperature)


def test_the_threshold_curve_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    positive = generator.random(300) < 0.3
    probability = np.round(generator.beta(2 + 2 * positive, 3), 2)  # With ties.
    precision, recall, thresholds = precision_recall_curve(positive, probability)
    curve = threshold_curve(probability, positive, thresholds)
    assert curve.precision == pytest.approx(precision[:-1])
    assert curve.recall == pytest.approx(recall[:-1])
    for n, threshold in enumerate(thresholds):
        predicted = probability >= threshold
        assert curve.f1[n] == pytest.approx(f1_score(positive, predicted))
        assert curve.accuracy[n] == pytest.approx(accuracy_score(positive, predicted))
    every = threshold_curve(probability, positive)
    assert (len(every.threshold), every.threshold[0], every.threshold[-1]) == (101, 0, 1)
    assert every.true_positives[0] == positive.sum()
    assert every.false_positives[0] == (~positive).sum()


def test_flipped_labels_are_found():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 3)) * 6
    true = draw_labels(logits, generator)
    gold = true.copy()
    flipped = np.arange(0, 300, 20)
    gold[flipped] = (true[flipped] + 1) % 3
    probabilities = softmax(logits, axis=1)
    found = find_label_errors(probabilities, gold)
    confident = [row for row in flipped if probabilities[row, true[row]] > 0.99]
    assert len(confident) > 5
    assert set(confident) <= set(found.tolist())
    own = probabilities[found, gold[found]]
    assert (np.diff(own) >= 0).all()
    assert (probabilities[found].argmax(axis=1) != gold[found]).all()
    assert len(find_label_errors(probabilities, probabilities.argmax(axis=1))) == 0


@pytest.mark.parametrize("counts", [(0, 0), (5, 5), (3, 14), (40, 11)])
def test_mcnemar_is_the_exact_binomial_test(counts):
    one, other = counts
    first = np.array([True] * one + [False] * other + [True] * 7 + [False] * 4)
    second = np.array([False] * one + [True] * other + [True] * 7 + [False] * 4)
    test = mcnemar_test(first, second)
    total = one + other
    tail = sum(math.comb(total, k) for k in range(min(counts) + 1)) / 2**total
    assert test == (one, other, pytest.approx(min(1, 2 * tail)))


def test_the_paired_bootstrap_has_the_variance_of_the_paired_difference():
    generator = np.random.default_rng(0)
    gold = generator.integers(0, 2, 1000)
    first = np.where(generator.random(1000) < 0.8, gold, 1 - gold)
    second = np.where(generator.random(1000) < 0.3, gold, first)
    difference = paired_bootstrap(accuracy(first, gold), accuracy(second, gold), 1000)["accuracy"]
    paired = (second == gold).astype(float) - (first == gold)
    half = 1.96 * paired.std() / math.sqrt(1000)
    assert difference.value == pytest.approx(paired.mean())
    assert difference.low == pytest.approx(paired.mean() - half, abs=0.15 * half)
    assert difference.high == pytest.approx(paired.mean() + half, abs=0.15 * half)
    assert difference.p_value < 0.01
    same = paired_bootstrap(accuracy(first, gold), accuracy(first, gold), 1000)["accuracy"]
    assert same == (0, 0, 0, 1)
    reverse = paired_bootstrap(accuracy(second, gold), accuracy(first, gold), 1000)["accuracy"]
    assert reverse.low == pytest.approx(-difference.high)
