"""Fits find the constants that losses were made from."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binom

from finetune.scaling.fitting import fit_law
from finetune.scaling.laws import LAWS
from task_formats import UsageError
from tests.scaling.losses import TRUE, make_losses


@pytest.mark.parametrize("name", LAWS)
def test_exact_losses_give_the_constants_to_1e_6(name):
    fit = fit_law(LAWS[name], *make_losses(name), bootstrap=0)
    assert fit.values == pytest.approx(TRUE[name], rel=1e-6)
    assert fit.rms < 1e-9


@pytest.mark.parametrize("name", LAWS)
def test_the_derivatives_are_those_of_the_log_loss(name):
    law = LAWS[name]
    logs = np.log(make_losses(name)[0])
    theta = np.log([TRUE[name][constant] for constant in law.constants])
    steps = 1e-6 * np.eye(len(theta))
    numeric = [
        (law.log_loss(theta + h, logs) - law.log_loss(theta - h, logs)) / 2e-6 for h in steps
    ]
    np.testing.assert_allclose(law.jacobian(theta, logs), np.transpose(numeric), atol=1e-7)


@pytest.mark.parametrize("name", ["kaplan", "hoffmann"])
def test_the_fit_minimizes_the_sum_of_huber_losses_of_log_residuals(name):
    law = LAWS[name]
    values, loss = make_losses(name, noise=0.01, seed=4)
    fit = fit_law(law, values, loss, bootstrap=0)

    def objective(theta):
        error = np.abs(np.log(loss) - law.log_loss(theta, np.log(values)))
        return np.where(error <= 1e-3, error**2 / 2, 1e-3 * (error - 5e-4)).sum()

    theta = np.log([fit.values[constant] for constant in law.constants])
    assert fit.objective == pytest.approx(objective(theta), rel=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(5):
        start = theta + generator.normal(0, 0.05, len(theta))
        other = minimize(objective, start, method="Nelder-Mead", options={"maxiter": 2000})
        assert objective(theta) <= other.fun * (1 + 1e-6)


@pytest.mark.parametrize(("name", "points"), [("L(N)", 12), ("hoffmann", 36)])
def test_one_outlier_hardly_moves_the_fit(name, points):
    values, loss = make_losses(name, noise=1e-4)
    assert len(loss) == points
    loss[points // 2] *= 1.5
    fit = fit_law(LAWS[name], values, loss, bootstrap=0)
    assert fit.values == pytest.approx(TRUE[name], rel=0.05)
    assert np.argmax(np.abs(fit.residuals)) == points // 2


def count_covered(name, seeds, bootstrap, size=6):
    covered = dict.fromkeys(TRUE[name], 0)
    for seed in seeds:
        values, loss = make_losses(name, noise=0.005, seed=1000 + seed, size=size)
        fit = fit_law(LAWS[name], values, loss, bootstrap=bootstrap, seed=seed)
        for constant, interval in fit.constants.items():
            covered[constant] += interval.low <= TRUE[name][constant] <= interval.high
    return covered


@pytest.mark.parametrize("name", ["L(N)", "hoffmann"])
def test_intervals_hold_the_constants_in_most_draws(name):
    assert min(count_covered(name, range(6), bootstrap=40).values()) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_every_constant_is_in_its_95_percent_interval_in_about_95_of_100_draws(name):
    low, high = binom.interval(0.95, 100, 0.95)
    assert (low, high) == (90, 99)
    counts = count_covered(name, range(100), bootstrap=200)
    assert low <= min(counts.values())
    assert max(counts.values()) <= high


def test_intervals_narrow_with_the_noise():
    def width(noise):
        values, loss = make_losses("L(N)", noise=noise)
        exponent = fit_law(LAWS["L(N)"], values, loss, bootstrap=50).constants["alpha_N"]
        return exponent.high - exponent.low

    assert 5 < width(0.02) / width(0.002) < 20


def test_what_cannot_be_fitted_is_refused():
    values, loss = make_losses("hoffmann")
    with pytest.raises(UsageError, match="has 5 constants, but there are 4 points"):
        fit_law(LAWS["hoffmann"], values[:4], loss[:4])
    with pytest.raises(UsageError, match=r"D is 2e\+10 in all points"):
        fit_law(LAWS["kaplan"], values * [1, 0] + [0, 2e10], loss)
