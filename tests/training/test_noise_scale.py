"""The estimator of the gradient noise scale, on gradients whose mean and covariance are known."""

import itertools
import math
from dataclasses import asdict

import numpy as np
import pytest

from finetune.training.noise_scale import (
    GradientMoments,
    MomentAverages,
    estimate_moments,
    measure_groups,
)


def squared(vectors):
    return np.square(vectors).sum(-1)


def estimate(gradients, weights, cuts):
    """The moments of updates whose gradients are (..., N, D), cut into groups at some examples."""
    groups = np.split(np.arange(len(weights)), cuts)
    sizes = measure_groups([weights[group] for group in groups])
    weighted = gradients * (weights / weights.sum())[:, None]
    small = sum(
        squared(weighted[..., group, :].sum(-2)) / share
        for group, share in zip(groups, sizes.shares, strict=True)
    )
    return estimate_moments(small, squared(weighted.sum(-2)), sizes)


@pytest.mark.parametrize(
    ("weights", "cuts"),
    [
        (np.ones(16), [8]),
        (np.ones(16), [3]),
        (np.ones(15), [4, 5, 11]),
        (np.linspace(0.2, 3, 16), [5]),
        (np.array([4.0, 1, 1, 1, 2, 2, 1, 4]), [2, 3]),
    ],
)
def test_gaussian_gradients_give_their_noise_scale(weights, cuts):
    """Within 5 %, for groups of equal and unequal sizes, and for examples of unequal weights."""
    draw = np.random.default_rng(0)
    mean, spread = np.full(20, 0.25), np.geomspace(0.3, 2, 20)
    gradients = mean + spread * draw.standard_normal((20_000, len(weights), 20))
    moments = estimate(gradients, weights, cuts)
    # The variance of a batch of unequal weights is larger than that of equal ones.
    factor = len(weights) * np.square(weights).sum() / weights.sum() ** 2
    noise = squared(spread) * factor
    assert np.mean(moments.noise) == pytest.approx(noise, rel=0.02)
    assert np.mean(moments.signal) == pytest.approx(squared(mean), rel=0.03)
    averages = MomentAverages(decay=1)
    for one in zip(*moments, strict=True):
        averages.add(GradientMoments(*map(float, one)))
    assert averages.noise_scale().value == pytest.approx(noise / squared(mean), rel=0.05)


def make_regression(seed, n=7):
    """(N, D) gradients of single examples of a linear regression, and their weights, all equal."""
    draw = np.random.default_rng(seed)
    inputs, outputs, point = draw.standard_normal((n, 3)), draw.standard_normal(n), np.ones(3)
    return 2 * (inputs @ point - outputs)[:, None] * inputs, np.ones(n)


def test_groups_of_one_example_give_the_sample_covariance_of_a_regression():
    gradients, weights = make_regression(0)
    noise, signal = estimate(gradients, weights, range(1, len(weights)))
    brute_force = np.trace(np.cov(gradients.T))
    assert noise == pytest.approx(brute_force, rel=1e-12)
    assert signal == pytest.approx(squared(gradients.mean(0)) - brute_force / 7, rel=1e-12)


@pytest.mark.parametrize("cuts", [[1], [3], [2, 3]])
def test_over_all_ways_to_cut_a_regression_the_mean_is_brute_force(cuts):
    gradients, weights = make_regression(1, n=6)
    found = [
        estimate(gradients[list(order)], weights, cuts)
        for order in itertools.permutations(range(6))
    ]
    brute_force = np.trace(np.cov(gradients.T))
    noise, signal = np.mean(found, axis=0)
    assert noise == pytest.approx(brute_force, rel=1e-10)
    assert signal == pytest.approx(squared(gradients.mean(0)) - brute_force / 6, rel=1e-10)


def test_equal_groups_give_the_formula_of_the_paper():
    gradients, weights = make_regression(2, n=8)
    noise, signal = estimate(gradients, weights, [2, 4, 6])
    small = np.mean([squared(gradients[n : n + 2].mean(0)) for n in (0, 2, 4, 6)])
    big = squared(gradients.mean(0))
    assert signal == pytest.approx((8 * big - 2 * small) / (8 - 2))
    assert noise == pytest.approx((small - big) / (1 / 2 - 1 / 8))


def test_groups_that_are_empty_or_without_weight_do_not_count():
    whole = measure_groups([np.ones(3), np.ones(2)])
    assert whole == measure_groups([np.ones(3), np.ones(0), np.ones(2), np.zeros(4)])
    assert whole.shares == (0.6, 0.4)
    assert measure_groups([np.ones(5)]) is None
    assert measure_groups([np.ones(5), np.zeros(1)]) is None


def test_the_scale_of_the_weights_does_not_matter():
    groups = [np.array([1.0, 2]), np.array([3.0])]
    assert np.allclose(
        np.hstack(measure_groups(groups)),
        np.hstack(measure_groups([7 * group for group in groups])),
    )


# -- averages ------------------------------------------------------------------------------------


def average(moments, **options):
    averages = MomentAverages(**options)
    for noise, signal in moments:
        averages.add(GradientMoments(noise, signal))
    return averages


def test_the_average_is_exponential_with_bias_correction():
    values = np.random.default_rng(0).normal([50, 2], 1, (30, 2))
    averages = average(values.tolist(), decay=0.9)
    expected, t = np.zeros(2), len(values)
    for value in values:
        expected = 0.9 * expected + 0.1 * value
    assert averages.moments == pytest.approx(expected / (1 - 0.9**t))
    weights = 0.9 ** np.arange(t)
    assert averages.effective_updates == pytest.approx(weights.sum() ** 2 / np.sum(weights**2))


def test_the_noise_scale_is_the_ratio_of_averages_and_not_the_average_of_ratios():
    averages = average([(10.0, 4.0), (30.0, -1.0), (20.0, 3.0)], decay=1)
    assert averages.noise_scale().value == pytest.approx(60 / 6)


@pytest.mark.parametrize(
    "moments", [[], [(10.0, 1.0)], [(10.0, 1.0), (10.0, -3.0)], [(-10.0, 1.0), (5.0, 1.0)]]
)
def test_a_noise_scale_is_not_known_without_two_updates_or_with_a_negative_average(moments):
    assert average(moments).noise_scale() is None


def test_an_interval_is_open_while_the_signal_may_be_zero():
    scale = average([(10.0, 5.0), (11.0, -4.0), (9.0, 3.0)]).noise_scale()
    assert scale.high == math.inf
    assert 0 < scale.low < scale.value
    settled = average([(10.0, 5.0), (11.0, 4.9), (9.0, 5.1)]).noise_scale()
    assert settled.value == pytest.approx(2, rel=0.01)
    assert settled.low < settled.value < settled.high < 4


@pytest.mark.parametrize("decay", [1, 0.98])
def test_intervals_hold_the_noise_scale_in_95_of_100_cases(decay):
    """Of Gaussian gradients in 10 dimensions: 60 updates of 8 examples in two groups."""
    draw = np.random.default_rng(0)
    mean, spread = np.full(10, 0.6), np.linspace(0.5, 1.5, 10)
    gradients = mean + spread * draw.standard_normal((600, 60, 8, 10))
    noise, signal = estimate(gradients, np.ones(8), [4])
    true, held = squared(spread) / squared(mean), 0
    for values in zip(noise, signal, strict=True):
        scale = average(np.transpose(values).tolist(), decay=decay).noise_scale()
        held += scale is not None and scale.low <= true <= scale.high
    assert 0.925 <= held / 600 <= 0.975


def test_averages_go_on_from_what_was_saved():
    moments = np.random.default_rng(0).normal([50, 2], 1, (30, 2)).tolist()
    first = average(moments[:12])
    resumed = MomentAverages(**asdict(first))
    for noise, signal in moments[12:]:
        resumed.add(GradientMoments(noise, signal))
    assert resumed == average(moments)
