"""Whole updates as GPT-1 makes them: loss, clipping, schedule and Adam together, to the weight."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from finetune.batching.collate import collate, count_totals
from finetune.recipe.schema import TrainConfig
from finetune.training.loop import LoopSettings, MicroBatches, optimize
from finetune.training.optimizer import build_optimizer, build_schedule
from tests.support import reference, samples
from tests.support.reference import Head, Moments, Shape
from tests.support.samples import KINDS

UPDATES, RATE = 3, 0.01


def ours(model, many, base, layout: str) -> tuple[dict[str, np.ndarray], list[float], list[float]]:
    """Three updates over the same examples, each in two forward passes of unequal size."""
    part = TrainConfig(learning_rate=RATE)
    rates = build_schedule(RATE, UPDATES, part.warmup)
    settings = LoopSettings(rates, part.epsilon, part.lm_coefficient)
    totals = count_totals(many)

    def forwards(update: int, budget: int | None):
        groups = (many[:1], many[1:])
        batches = [collate(group, layout, base.task_tokens.pad_id, totals) for group in groups]
        return MicroBatches(batches, len(many), sum(example.tokens for example in many))

    optimizer = build_optimizer(
        model.parameters(),
        learning_rate=RATE,
        betas=part.betas,
        epsilon=part.epsilon,
        weight_decay=part.weight_decay,
    )
    numbers = range(1, UPDATES + 1)
    steps = list(optimize(model, optimizer, numbers, forwards, settings, Accelerator(cpu=True)))
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    return weights, [s.losses.total.item() for s in steps], [s.grad_norm.item() for s in steps]


def theirs(
    start: dict[str, np.ndarray], prefix: str, shape: Shape, many, kind, extract: int
) -> tuple[dict[str, np.ndarray], list[float], list[float]]:
    """The same by the reference alone."""
    weights = {name: value.copy() for name, value in start.items()}
    moments = {
        name: Moments(np.zeros_like(value), np.zeros_like(value)) for name, value in start.items()
    }
    texts, labels = [samples.views(example) for example in many], [e.label for e in many]
    losses, norms = [], []
    for step in range(1, UPDATES + 1):
        tensors = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
        body = {name.removeprefix(prefix): value for name, value in tensors.items()}
        head = Head(tensors["head.weight"], tensors["head.bias"])
        loss = reference.objective(body, shape, head, texts, labels, kind.name, extract, 0.5).total
        loss.backward()
        gradients, norm = reference.clip([value.grad.numpy() for value in tensors.values()])
        rate = RATE * reference.rate_factor(step / UPDATES)
        for name, gradient in zip(tensors, gradients, strict=True):
            weights[name], moments[name] = reference.adam(
                weights[name], gradient, moments[name], step, rate
            )
        losses.append(loss.item())
        norms.append(norm)
    return weights, losses, norms


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("family", ["gpt2", "openai-gpt"])
def test_three_updates_move_every_weight_as_the_paper_says(family, name, bases) -> None:
    kind, base = KINDS[name], samples.load(bases(family))
    many = samples.examples(kind, base, count=4, max_tokens=24)
    model = samples.task_model(kind, base).double()
    start = {key: weight.detach().numpy().copy() for key, weight in model.named_parameters()}
    decoder = base.decoder
    shape = Shape(decoder.config.n_head, norms_first=family == "gpt2")
    prefix = f"backbone.decoder.{decoder.base_model_prefix}."
    extract = base.task_tokens.special_tokens.extract
    expected, losses, norms = theirs(start, prefix, shape, many, kind, extract)
    layout = "packed" if family == "gpt2" else "separate"
    found, our_losses, our_norms = ours(model, many, base, layout)
    assert our_losses == pytest.approx(losses, rel=1e-5)
    assert our_norms == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 1, "nothing was clipped"
    assert found.keys() == expected.keys()
    for key, weight in found.items():
        # As whole tensors: Adam magnifies rounding where a single gradient is next to nothing.
        moved = np.linalg.norm(expected[key] - start[key])
        assert np.linalg.norm(weight - expected[key]) < 1e-5 * moved + 1e-9, key
        # Choices share their bias: it cannot matter, and has no gradient.
        assert moved > 1e-3 * RATE or key == "head.bias", key
