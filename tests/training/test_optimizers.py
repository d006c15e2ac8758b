"""The optimizers by name: PyTorch's own steps, skipped updates, and resuming."""

import sys
from importlib.util import find_spec

import pytest
import torch

from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import TrainConfig
from finetune.training import optimizer
from finetune.training.optimizer import build_optimizer, take_step
from task_formats import UsageError
from tests.support import jobs

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EIGHT_BIT = pytest.param("adamw_8bit", marks=needs_bitsandbytes)
SHAPES = [(4, 3), (5,), (2, 3, 2)]


def make_weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(weights: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def reference(name: str, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """PyTorch's optimizer; only tensors with more than one axis decay."""
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.05)
    return torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.9), eps=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_step_is_that_of_pytorch(name) -> None:
    config = TrainConfig(
        optimizer=name, learning_rate=0.05, weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-3
    )
    ours, theirs = make_weights(), make_weights()
    built, expected = build_optimizer(ours, config), reference(name, theirs)
    for step in range(1, 6):
        rate = 0.05 / step
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for group in expected.param_groups:
            group["lr"] = rate
        take_step(built, name, step, rate, config.epsilon, torch.zeros(()))
        expected.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "adam", "adafactor", EIGHT_BIT])
def test_an_update_that_is_not_finite_changes_nothing(name) -> None:
    weights = make_weights()
    built = build_optimizer(weights, TrainConfig(optimizer=name))
    set_gradients(weights, 1)
    before = [weight.detach().clone() for weight in weights]
    take_step(built, name, 1, 0.1, 1e-8, torch.ones(()))
    assert all(map(torch.equal, weights, before))
    take_step(built, name, 2, 0.1, 1e-8, torch.zeros(()))
    assert not any(map(torch.equal, weights, before))


@needs_bitsandbytes
def test_moments_in_8_bits_are_small_and_nearly_those_of_adamw() -> None:
    """Each moment is a byte per weight, and a scale for every 256 weights."""
    ours, theirs = ([torch.nn.Parameter(torch.ones(64, 128))] for _ in range(2))
    names = ("adamw_8bit", "adamw")
    optimizers = {
        name: build_optimizer(weights, TrainConfig(optimizer=name))
        for name, weights in zip(names, (ours, theirs), strict=True)
    }
    for step in range(1, 9):
        for name, weights in zip(names, (ours, theirs), strict=True):
            set_gradients(weights, step)
            take_step(optimizers[name], name, step, 0.01 / step, 1e-8, torch.zeros(()))
    moved = [weights[0].detach() - 1 for weights in (ours, theirs)]
    assert (moved[0] - moved[1]).norm() < 0.05 * moved[1].norm()
    assert not torch.equal(*moved)
    (state,) = optimizers["adamw_8bit"].state.values()
    names = ("state1", "absmax1", "state2", "absmax2")
    assert sum(state[name].nbytes for name in names) == 2 * 64 * 128 * (1 + 4 / 256)


@pytest.mark.parametrize("name", ["adamw", "adafactor", EIGHT_BIT])
def test_a_run_resumes_bit_equal(name, bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, optimizer=name, **jobs.NOISY)
    whole = jobs.train(recipe, tmp_path / "whole")
    run = tmp_path / "run"
    jobs.stop_at(recipe, run, 3)
    jobs.train(recipe, run, resume=True)
    jobs.assert_same(whole, run)
    jobs.stop_at(recipe, tmp_path / "other", 3)
    other = jobs.change(recipe, "train", optimizer="adam")
    with pytest.raises(UsageError, match=r"another train\.optimizer"):
        jobs.train(other, tmp_path / "other", resume=True)


@pytest.mark.parametrize("name", ["adafactor", "adamw_8bit"])
def test_shards_are_refused(name, monkeypatch) -> None:
    monkeypatch.setattr(optimizer, "DTensor", torch.nn.Parameter)
    with pytest.raises(UsageError, match=rf"train.optimizer: {name} .*\nUse adamw"):
        build_optimizer(make_weights(), TrainConfig(optimizer=name))


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="bitsandbytes") as caught:
        build_optimizer(make_weights(), TrainConfig(optimizer="adamw_8bit"))
    assert caught.value.cure == "pip install 'gptft[quantization]'"


def test_defaults_follow_the_profile_and_the_optimizer() -> None:
    def train(**overrides) -> TrainConfig:
        return load_recipe("rte", overrides).train

    assert train().optimizer == "adamw"
    assert train(profile="paper").optimizer == "adam"
    assert train(**{"train.optimizer": "adafactor"}).learning_rate == 1e-2
    given = {"train.optimizer": "adafactor", "train.learning_rate": 1e-3}
    assert train(**given).learning_rate == 1e-3
