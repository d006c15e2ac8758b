"""Dropout with cheap random numbers: probabilities, means, gradients, independence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.models.speedups.dropout import FastDropout, draw_mask, fast_dropout


@given(st.integers(1, 50), st.sampled_from([0.1, 0.5, 0.9999999]), st.integers(0, 2**32))
def test_every_value_is_dropped_or_scaled_and_its_gradient_with_it(count, probability, seed):
    values = torch.arange(1.0, count + 1, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(seed)
    kept, factor = draw_mask(count, probability)
    torch.manual_seed(seed)
    output = fast_dropout(values, probability)
    assert torch.equal(output, values * kept * factor)
    assert set(kept.tolist()) <= {0, 1}
    (gradient,) = torch.autograd.grad(output.sum(), values)
    assert torch.equal(gradient, kept.double() * factor)


@pytest.mark.parametrize("probability", [0.0001, 0.1, 0.5, 0.9])
def test_the_dropped_fraction_and_the_factor_match_the_probability(probability):
    torch.manual_seed(0)
    count = 1_000_000
    kept, factor = draw_mask(count, probability)
    dropped = 1 - 1 / factor
    assert dropped == pytest.approx(probability, abs=2**-17)
    deviation = math.sqrt(count * dropped * (1 - dropped))
    assert abs(count - int(kept.sum()) - count * dropped) < 5 * deviation


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept, _ = draw_mask(400_000, 0.5)
    patterns = kept.view(-1, 4).long() @ torch.tensor([1, 2, 4, 8])
    counts = torch.bincount(patterns, minlength=16)
    deviation = math.sqrt(100_000 * (1 / 16) * (15 / 16))
    assert ((counts - 100_000 / 16).abs() < 5 * deviation).all()


def test_nothing_is_dropped_without_training_or_at_zero():
    values = torch.randn(5, 3)
    assert FastDropout(0.5).eval()(values) is values
    assert torch.equal(fast_dropout(values, 0.0), values)
