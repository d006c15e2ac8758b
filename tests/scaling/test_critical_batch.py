"""Costs of batch sizes, points from logs, and the fit of the noise scale against the loss."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from finetune.scaling.critical_batch import (
    MIN_WINDOW,
    NoisePoint,
    advise,
    compute_cost,
    compute_fewest,
    fit_critical_batch,
    list_costs,
    read_log,
    suggest_batch,
)
from finetune.training.noise_scale import GradientMoments, NoiseScale


@pytest.mark.parametrize("batch", [1, 32, 1000])
def test_costs_lie_on_the_curve_of_mccandlish(batch):
    """(S / S_min − 1)(E / E_min − 1) = 1, and E / S = B with E_min / S_min the critical batch."""
    cost = compute_cost(batch, 100)
    assert (cost.updates - 1) * (cost.examples - 1) == pytest.approx(1)
    assert cost.examples / cost.updates * 100 == pytest.approx(batch)


def test_a_run_at_the_critical_batch_takes_twice_the_fewest():
    assert compute_fewest(1000, 64, 64.0) == (500, 32_000)
    small = compute_fewest(1000, 1, 1e6)
    assert small.examples == pytest.approx(1000, rel=1e-3)


def test_the_critical_batch_takes_twice_the_fewest_updates_and_examples():
    assert compute_cost(77.0, 77.0)[1:] == (2, 2)
    assert [suggest_batch(value) for value in (0.3, 1.2, 95, 143)] == [1, 1, 128, 128]


def test_advice_comes_from_the_latest_measured_weights_of_the_last_run():
    log, early, late = (point(3.0, 50 * scale) for scale in (10, 20, 30))
    early = replace(early, source="checkpoint", update=5)
    late = replace(late, source="checkpoint", update=7)
    unknown = replace(late, update=9, scale=None)
    other = replace(late, run="other", update=11)
    advice = advise([other, replace(log, update=8), late, early, unknown])
    assert (advice.update, advice.critical.value, advice.suggested, advice.batch) == (7, 30, 32, 32)
    assert advice.fewest == compute_fewest(7, 32, 30)
    assert advise([other, unknown]) is None


def test_costs_are_listed_around_the_run_and_the_critical_batch():
    sizes = [cost.batch for cost in list_costs(130.0, 48)]
    assert sizes == sorted({8, 16, 32, 48, 64, 128, 256, 512, 1024})


def point(loss, tokens, error=0.1):
    scale = NoiseScale(tokens / 50, tokens / 50 * math.exp(-error), tokens / 50 * math.exp(error))
    values = ("run", "log", 1, loss, GradientMoments(1.0, 1.0), scale, 32, 50.0)
    return NoisePoint(*values)


def test_the_fit_finds_known_constants():
    points = [point(loss, 3e6 / loss ** (1 / 0.25)) for loss in (6.0, 5.0, 4.0, 3.0)]
    fit = fit_critical_batch(points)
    assert fit.exponent.value == pytest.approx(0.25)
    assert fit.batch.value == pytest.approx(3e6)
    assert fit.critical_batch(3.5) == pytest.approx(3e6 / 3.5**4)


def test_intervals_of_the_fit_hold_the_constants_in_95_of_100_draws():
    draw, losses, held = np.random.default_rng(0), np.geomspace(6, 3, 8), []
    for _ in range(400):
        noise = draw.normal(0, 0.2, 8)
        tokens = 3e6 / losses**4 * np.exp(noise)
        points = [point(*pair, error=1.96 * 0.2) for pair in zip(losses, tokens, strict=True)]
        fit = fit_critical_batch(points)
        held.append(
            [
                fit.exponent.low <= 0.25 <= fit.exponent.high,
                fit.batch.low <= 3e6 <= fit.batch.high,
            ]
        )
    assert np.all(np.mean(held, 0) > 0.93)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([point(5, 1e4), point(4, 2e4)], "needs 3 points"),
        ([point(5, 1e4), point(5.1, 2e4), point(5.2, 3e4)], "the loss hardly varies"),
        ([point(3, 1e4), point(4, 2e4), point(5, 3e4)], "does not grow"),
    ],
)
def test_a_fit_that_would_mean_nothing_is_refused(points, reason):
    assert reason in fit_critical_batch(points)


def test_a_point_with_an_open_interval_is_left_out():
    points = [point(loss, 3e6 / loss**4) for loss in (6.0, 5.0, 4.0)]
    lost = NoisePoint(*list(vars(points[0]).values())[:5], NoiseScale(9, 3, math.inf), 32, 50.0)
    assert fit_critical_batch([*points, lost]).points == 3


def write_log(path, events):
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "tra')


def test_the_log_is_averaged_over_windows(tmp_path):
    draw = np.random.default_rng(0)
    events = [
        {
            "event": "train",
            "update": n,
            "loss": 5 - n / 100,
            "gradient_noise": float(draw.normal(300, 5)),
            "gradient_signal": float(draw.normal(2, 0.2)),
            "examples": 16,
            "tokens": 16 * 65,
        }
        for n in range(1, 3 * MIN_WINDOW)
    ]
    evaluation = {"event": "evaluate", "scores": {}}
    skipped = {**events[0], "gradient_noise": None}
    plain = {"event": "train", "update": 0, "loss": 9.0}
    write_log(tmp_path / "log", [plain, *events[:30], evaluation, skipped, *events[30:]])
    first, second = read_log(tmp_path / "log", "run", True)
    noise = [event["gradient_noise"] for event in events[:30]]
    assert first.moments.noise == pytest.approx(np.mean(noise))
    assert first.loss == pytest.approx(np.mean([event["loss"] for event in events[:30]]))

    assert first.scale.value == pytest.approx(150, rel=0.1)
    assert (first.update, second.update, first.tokens_per_example) == (16, 45, 64)
    assert read_log(tmp_path / "log", "run", False)[0].tokens_per_example is None
    assert read_log(tmp_path / "missing", "run", True) == []
