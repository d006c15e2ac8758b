"""The chunked language-model loss is the naive one, with the same gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from finetune.models import losses
from finetune.models.losses import lm_loss, token_losses


def draw(count: int, vocabulary: int, biased: bool, dtype: torch.dtype = torch.float64):
    torch.manual_seed(count * 1000 + vocabulary)
    width = 5
    states, weight = (3 * torch.randn(n, width, dtype=dtype) for n in (count, vocabulary))
    bias = torch.randn(vocabulary, dtype=dtype) if biased else None
    target, share = torch.randint(0, vocabulary, (count,)), torch.rand(count, dtype=dtype)
    for part in (states, weight, bias):
        if part is not None:
            part.requires_grad_()
    return states, weight, bias, target, share


def naive(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor,
    cap: float | None = None,
):
    logits = linear(states, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    # Where products are made in bfloat16, the rest is still done in float32.
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    nll = cross_entropy(logits, target, reduction="none")
    return (share * nll).sum()


CAPS = st.sampled_from([None, 0.5, 9.0])


@given(st.integers(0, 9), st.integers(1, 70), st.booleans(), st.integers(1, 4), CAPS)
def test_in_chunks_of_any_size_it_is_the_naive_loss(count, vocabulary, biased, chunk, cap):
    parts = (*draw(count, vocabulary, biased), cap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK", chunk)
        found = lm_loss(*parts)
        each = token_losses(*parts[:4], cap)
    torch.testing.assert_close(found, naive(*parts), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((each * parts[4]).sum(), naive(*parts), rtol=1e-12, atol=1e-12)
    leaves = [part for part in parts[:3] if part is not None]
    for one, other in zip(
        torch.autograd.grad(3 * found, leaves),
        torch.autograd.grad(3 * naive(*parts), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["states", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "CHUNK", 3)
    states, weight, bias, target, share = draw(7, 40, biased=True)
    moving = weight if frozen == "states" else states
    (states if frozen == "states" else weight).requires_grad_(False)
    found = lm_loss(states, weight, bias, target, share)
    expected = naive(states, weight, bias, target, share)
    one, other = (torch.autograd.grad(loss, moving)[0] for loss in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_logits_far_apart_lose_nothing():
    """A target whose probability is below the smallest number still has its likelihood."""
    states = torch.tensor([[200.0], [-200.0]])
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    target = torch.tensor([2, 2])
    each = token_losses(states, weight, None, target)
    assert each.tolist() == pytest.approx([400.0, 0.0], abs=1e-5)
    loss = lm_loss(states.requires_grad_(), weight, None, target, torch.ones(2))
    assert loss.item() == pytest.approx(400.0)
    (slope,) = torch.autograd.grad(loss, states)
    assert slope.flatten().tolist() == pytest.approx([2.0, 0.0])


def test_under_autocast_only_the_products_are_narrow():
    """Products in bfloat16, everything else in float32: the same rounding on both sides."""
    states, weight, _, target, share = draw(20, 50, biased=False, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = lm_loss(states, weight, None, target, share)
    expected = naive(states.bfloat16(), weight.bfloat16(), None, target, share)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(found, (states, weight)),
        torch.autograd.grad(expected, (states, weight)),
        strict=True,
    ):
        assert one.dtype == other.dtype
        assert float((one - other).norm() / other.norm()) < 2**-7
