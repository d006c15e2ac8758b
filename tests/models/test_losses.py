"""The chunked language-model loss equals the direct one, with the same gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear

from finetune.models import losses
from finetune.models.losses import TaskLossOptions, lm_loss, task_loss, token_losses
from finetune.models.speedups.reused_memory import ReusedMemory


def draw(count: int, vocabulary: int, biased: bool, dtype: torch.dtype = torch.float64):
    """States, weight, bias, target and token weight."""
    torch.manual_seed(count * 1000 + vocabulary)
    width = 5
    states, weight = (3 * torch.randn(n, width, dtype=dtype) for n in (count, vocabulary))
    bias = torch.randn(vocabulary, dtype=dtype) if biased else None
    target, token_weight = torch.randint(0, vocabulary, (count,)), torch.rand(count, dtype=dtype)
    for tensor in (states, weight, bias):
        if tensor is not None:
            tensor.requires_grad_()
    return states, weight, bias, target, token_weight


def direct_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    token_weight: Tensor,
    cap: float | None = None,
):
    logits = linear(states, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    # Where products are in bfloat16, everything else is still in float32.
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    return (token_weight * cross_entropy(logits, target, reduction="none")).sum()


CAPS = st.sampled_from([None, 0.5, 9.0])


@given(st.integers(0, 9), st.integers(1, 70), st.booleans(), st.integers(1, 4), CAPS)
def test_chunks_of_any_size_give_the_direct_loss(count, vocabulary, biased, chunk, cap):
    inputs = (*draw(count, vocabulary, biased), cap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "CHUNK", chunk)
        loss = lm_loss(*inputs)
        each = token_losses(*inputs[:4], cap)
    expected = direct_loss(*inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((each * inputs[4]).sum(), expected, rtol=1e-12, atol=1e-12)
    leaves = [tensor for tensor in inputs[:3] if tensor is not None]
    gradients = (torch.autograd.grad(3 * x, leaves) for x in (loss, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=4))
def test_memory_that_is_used_again_changes_no_bit(calls):
    """Calls of several sizes, with and without products in bfloat16, one after another."""
    memory = ReusedMemory()
    for count, autocast in calls:
        found = []
        for kept in (None, memory):
            states, weight, bias, target, token_weight = draw(count, 40, True, torch.float32)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = lm_loss(states, weight, bias, target, token_weight, None, kept)
                each = token_losses(states, weight, bias, target, None, kept)
            loss.backward()
            found.append((loss, each, states.grad, weight.grad, bias.grad))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


def test_memory_is_kept_from_one_call_to_the_next():
    memory, like = ReusedMemory(), torch.zeros(1)
    first = memory.take("a", 3, 4, like, torch.float32)
    smaller = memory.take("a", 2, 5, like, torch.float32)
    assert (smaller.shape, smaller.data_ptr()) == ((2, 5), first.data_ptr())
    assert memory.take("b", 2, 5, like, torch.float32).data_ptr() != first.data_ptr()
    assert memory.take("a", 5, 5, like, torch.float32).shape == (5, 5)


@pytest.mark.parametrize("frozen", ["states", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(losses, "CHUNK", 3)
    inputs = draw(7, 40, biased=True)
    index = ["states", "weight"].index(frozen)
    inputs[index].requires_grad_(False)
    for loss in (lm_loss(*inputs), direct_loss(*inputs)):
        loss.backward()
    assert inputs[index].grad is None
    (other,) = torch.autograd.grad(direct_loss(*inputs), inputs[1 - index])
    torch.testing.assert_close(inputs[1 - index].grad, 2 * other, rtol=1e-12, atol=1e-12)


def test_logits_far_apart_lose_nothing():
    """A target whose probability is below the smallest number still has its likelihood."""
    states = torch.tensor([[200.0], [-200.0]])
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    target = torch.tensor([2, 2])
    each = token_losses(states, weight, None, target)
    assert each.tolist() == pytest.approx([400.0, 0.0], abs=1e-5)
    loss = lm_loss(states.requires_grad_(), weight, None, target, torch.ones(2))
    assert loss.item() == pytest.approx(400.0)
    (gradient,) = torch.autograd.grad(loss, states)
    assert gradient.flatten().tolist() == pytest.approx([2.0, 0.0])


def test_under_autocast_only_the_products_are_in_bfloat16():
    """Both sides round the same products, so everything else must be in float32."""
    states, weight, _, target, token_weight = draw(20, 50, biased=False, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = lm_loss(states, weight, None, target, token_weight)
    expected = direct_loss(states.bfloat16(), weight.bfloat16(), None, target, token_weight)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    gradients = (torch.autograd.grad(x, (states, weight)) for x in (loss, expected))
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).norm() / other.norm()) < 2**-7


@given(
    st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=1, max_size=6),
    st.none() | st.lists(st.floats(0.1, 9), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.1, 0.7]),
)
def test_weighted_and_smoothed_losses_are_those_of_torch(labels, weights, smoothing):
    torch.manual_seed(len(labels))
    logits = torch.randn(len(labels), 3, dtype=torch.float64, requires_grad=True)
    label = torch.tensor(labels)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    loss = task_loss(logits, label, TaskLossOptions(weight, smoothing)).sum()
    expected = cross_entropy(logits, label, weight, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_smoothing_counts_only_the_choices_that_an_example_has():
    logits = torch.tensor([[0.3, -1.0, -torch.inf]], requires_grad=True)
    loss = task_loss(logits, torch.tensor([1]), TaskLossOptions(None, 0.2))
    two = logits.detach()[:, :2].requires_grad_()
    expected = cross_entropy(two, torch.tensor([1]), label_smoothing=0.2)
    torch.testing.assert_close(loss[0], expected)
    for value in (loss.sum(), expected):
        value.backward()
    torch.testing.assert_close(logits.grad[:, :2], two.grad)
    assert logits.grad[0, 2] == 0


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 7.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_labels_have_the_binary_cross_entropy_of_torch(weights, smoothing):
    torch.manual_seed(0)
    logits = 30 * torch.randn(5, 3, dtype=torch.float64)
    label = torch.randint(0, 2, (5, 3)).double()
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    target = label * (1 - smoothing) + smoothing / 2
    expected = binary_cross_entropy_with_logits(
        logits, target, pos_weight=weight, reduction="none"
    ).mean(1)
    label[2] = torch.nan  # unlabelled
    expected[2] = 0
    loss = task_loss(logits, label, TaskLossOptions(weight, smoothing))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
