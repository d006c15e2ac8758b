"""The reference is held to itself and to other people's code before anything is held to it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe.schema import TrainConfig
from finetune.training.optimizer import build_optimizer, learning_rate_factor, take_step
from tests.support import reference
from tests.support.reference import Head, Moments, Shape

VIEW = [5, 9, 2, 30, 7, 7, 11]


@pytest.fixture(params=["gpt2", "openai-gpt"])
def decoder(request, bases) -> transformers.PreTrainedModel:
    model = transformers.AutoModelForCausalLM.from_pretrained(bases(request.param))
    return model.double().eval()


def weights_of(decoder: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    found = decoder.base_model.state_dict().items()
    return {name: value.detach().numpy() for name, value in found}


def shape_of(decoder: transformers.PreTrainedModel) -> Shape:
    return Shape(decoder.config.n_head, norms_first=decoder.config.model_type == "gpt2")


def test_its_states_are_those_of_transformers(decoder) -> None:
    found = reference.states(weights_of(decoder), shape_of(decoder), VIEW)
    with torch.no_grad():
        expected = decoder.base_model(torch.tensor([VIEW])).last_hidden_state[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)


def test_its_language_loss_is_that_of_transformers(decoder) -> None:
    views = [VIEW, VIEW[:4], VIEW[2:]]
    found = reference.language_loss(weights_of(decoder), shape_of(decoder), [views[:1], views[1:]])
    with torch.no_grad():
        each = [decoder(t, labels=t).loss for t in (torch.tensor([view]) for view in views)]
    np.testing.assert_allclose(found, np.mean([loss.item() for loss in each]), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "labels"), [("class", [1, 0]), ("choice", [1, 0]), ("score", [2.5, 0.1])]
)
def test_torch_gives_its_gradient_and_finite_differences_agree(decoder, kind, labels) -> None:
    read, examples = 11, [[VIEW, [5, 4, 11]], [[5, 8, 11], [5, 6, 7, 11]]]
    weights, shape = weights_of(decoder), shape_of(decoder)
    width = decoder.config.n_embd
    generator = np.random.default_rng(0)
    head = Head(generator.normal(size=(2 if kind == "class" else 1, width)), np.array([0.3]))

    def total(name: str, place: tuple[int, ...], by: float) -> float:
        moved = {**weights, name: weights[name].copy()}
        moved[name][place] += by
        return reference.objective(moved, shape, head, examples, labels, kind, read, 0.5).total

    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    torch_head = Head(*map(torch.tensor, head))
    loss = reference.objective(tensors, shape, torch_head, examples, labels, kind, read, 0.5)
    assert loss.total.item() == pytest.approx(total("h.0.ln_1.bias", (0,), 0.0), rel=1e-12)
    loss.total.backward()
    for name in ("h.0.ln_1.weight", "h.1.attn.c_attn.weight", "h.1.mlp.c_proj.bias"):
        place = tuple(generator.integers(0, size) for size in weights[name].shape)
        slope = (total(name, place, 1e-6) - total(name, place, -1e-6)) / 2e-6
        assert tensors[name].grad[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


# -- the schedule and the update, ours against the reference ---------------------------------------


@pytest.mark.parametrize(
    ("x", "factor"),
    [(0, 0), (0.001, 0.5 * 0.999), (0.002, 0.998), (0.5, 0.5), (0.75, 0.25), (1, 0)],
)  # fmt: skip
def test_the_reference_schedule_climbs_for_a_fifth_of_a_percent_and_falls(x, factor) -> None:
    assert reference.rate_factor(x) == pytest.approx(factor, abs=1e-15)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_our_schedule_is_the_papers(case: tuple[int, int]) -> None:
    update, updates = case
    expected = reference.rate_factor(update / updates)
    found = learning_rate_factor(update, updates, 0.002, "gpt1")
    assert found == pytest.approx(expected, abs=1e-15)


@given(
    st.integers(1, 300),
    st.floats(0, 0.99) | st.integers(1, 400),
    st.sampled_from(["linear", "cosine", "constant"]),
)
def test_other_schedules_climb_to_1_and_fall_without_an_update_at_rate_0(
    updates: int, warmup: float, schedule: Any
) -> None:
    factors = [learning_rate_factor(t, updates, warmup, schedule) for t in range(1, updates + 1)]
    peak = factors.index(1.0)
    assert min(factors) > 0
    assert factors[: peak + 1] == sorted(set(factors[: peak + 1]))
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert peak == min(warmup if warmup >= 1 else round(warmup * updates), updates - 1)
    if schedule == "linear":
        steps = np.diff([*factors[peak:], 0.0])
        np.testing.assert_allclose(steps, -1 / (updates - peak), rtol=1e-9)


def test_our_update_is_the_papers_adam() -> None:
    """Epsilon is made large here, so that its place in the formula shows."""
    torch.manual_seed(0)
    part = TrainConfig(optimizer="adam", epsilon=0.03, weight_decay=0.1, learning_rate=0.05)
    shapes = [(4, 3), (5,), (2, 3, 2), (1,)]
    ours = [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    optimizer = build_optimizer(ours, part)
    theirs = [weight.detach().numpy().copy() for weight in ours]
    moments = [Moments(np.zeros_like(weight), np.zeros_like(weight)) for weight in theirs]
    for step in range(1, 8):
        rate = part.learning_rate * reference.rate_factor(step / 8)
        raw = [torch.randn_like(weight) * 10 ** (step % 3 - 1) for weight in ours]
        clipped, norm = reference.clip([g.numpy() for g in raw], part.max_grad_norm)
        for weight, gradient in zip(ours, raw, strict=True):
            weight.grad = gradient.clone()
        found = torch.nn.utils.clip_grad_norm_(ours, part.max_grad_norm)
        assert found.item() == pytest.approx(norm, rel=1e-12)
        take_step(optimizer, "adam", step, rate, part.epsilon, torch.zeros(()))
        for k, gradient in enumerate(clipped):
            theirs[k], moments[k] = reference.adam(
                theirs[k], gradient, moments[k], step, rate, epsilon=0.03, decay=0.1
            )
            # PyTorch's clipping divides by norm + 1e-6.
            np.testing.assert_allclose(ours[k].detach().numpy(), theirs[k], rtol=2e-5, atol=1e-7)


def test_only_tensors_with_more_than_one_axis_decay() -> None:
    still = np.zeros(3)
    nothing = Moments(np.zeros(3), np.zeros(3))
    flat, _ = reference.adam(np.ones(3), still, nothing, 1, 0.1)
    np.testing.assert_array_equal(flat, np.ones(3))
    square, _ = reference.adam(
        np.ones((1, 3)), still[None], Moments(still[None], still[None]), 1, 0.1
    )
    np.testing.assert_allclose(square, 1 - 0.1 * math.sqrt(0.001) / 0.1 * 0.01)
