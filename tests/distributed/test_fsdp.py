"""FSDP2: sharded weights train as whole ones do, and checkpoints fit any number of shards."""

import itertools
import os

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

import finetune.distributed.fsdp
import finetune.training.finetuning
from finetune.checkpointing import checkpoint
from finetune.distributed.fsdp import fsdp_requested
from finetune.training.events import Started
from finetune.training.finetuning import events
from task_formats import UsageError
from tests.support import jobs, processes
from tests.support.processes import SHARDS, assert_same, train, train_in_processes

ODD = {**processes.ODD, "epochs": 1}
"""An update takes long with shards: four, of 7, 7, 7 and 1 rows."""


def train_sharded(count, recipe, run, stop=None, function=train):
    return train_in_processes(count, recipe, run, stop, environment=SHARDS, function=function)


def train_and_count(recipe, run, stop=None):
    """Trains, and fails unless this process holds only a part of the weights and moments."""
    prepare, made = finetune.training.finetuning.prepare_finetuning, []

    def keep(*arguments, **options):
        made.append(prepare(*arguments, **options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.training.finetuning, "prepare_finetuning", keep)
        assert train(recipe, run, stop) == 0
    [job] = made
    weights = list(job.model.parameters())
    here = sum(weight.to_local().numel() for weight in weights)
    assert here < 0.6 * sum(weight.numel() for weight in weights)
    trained = sum(weight.to_local().numel() for weight in weights if weight.requires_grad)
    moments = [state["exp_avg"].to_local().numel() for state in job.optimizer.state.values()]
    assert sum(moments) == trained
    assert any("sharded over 2 processes" in text for text in job.notices)
    return 0


@pytest.mark.parametrize(
    ("kind", "family", "part", "settings"),
    [
        ("similarity", "llama", {}, {"activation_checkpointing": True, "tokens_per_forward": 60}),
        ("entailment", "gpt2", {"lora": {"rank": 2}}, {}),
        pytest.param("score", "gpt2", {}, {"tokens_per_forward": 60}, marks=pytest.mark.slow),
        pytest.param("multiple_choice", "llama", {}, {"lm_coefficient": 0}, marks=pytest.mark.slow),
    ],
)
def test_shards_train_as_whole_weights(kind, family, part, settings, bases, tmp_path):
    """A separate output matrix, several passes per update, adapters, tied weights."""
    recipe = jobs.recipe(
        kind, bases(family), tmp_path / "data", base_part=part, **{**ODD, **settings}
    )
    one = jobs.train(recipe, tmp_path / "one")
    shards = train_sharded(2, recipe, tmp_path / "shards", function=train_and_count)
    assert_same(one, shards)


@pytest.mark.slow
def test_offloaded_shards_train_as_whole_weights(bases, tmp_path):
    """On a CPU they stay where they are; the policy and its way through a run are the same."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    run, environment = tmp_path / "run", {**SHARDS, "FSDP_OFFLOAD_PARAMS": "true"}
    options = {"environment": environment, "function": train_offloaded}
    train_in_processes(2, recipe, run, stop=3, **options)
    train_in_processes(2, recipe, run, **options)
    assert_same(one, run)


def train_offloaded(recipe, run, stop=None):
    """As `train`; fails unless every unit has the policy."""
    with pytest.MonkeyPatch.context() as patch:
        policies = []

        def record(module, **options):
            policies.append(options["offload_policy"])
            return fully_shard(module, **options)

        patch.setattr(finetune.distributed.fsdp, "fully_shard", record)
        code = train(recipe, run, stop)
    assert {type(policy) for policy in policies} == {CPUOffloadPolicy}
    return code


def test_a_checkpoint_of_shards_resumes_with_and_without_shards(bases, tmp_path):
    """Two shards, then two whole models, three shards, and one process."""
    recipe = jobs.recipe("similarity", bases("gpt2"), tmp_path / "data", **ODD)
    one, run = jobs.train(recipe, tmp_path / "one"), tmp_path / "run"
    train_sharded(2, recipe, run, stop=1)
    train_in_processes(2, recipe, run, stop=2)
    train_sharded(3, recipe, run, stop=3)
    (started,) = [e for e in events(recipe, run, resume=True) if isinstance(e, Started)]
    assert started.done == 3
    assert jobs.distance(jobs.weights(one), jobs.weights(run)) < 1e-5
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(run), rel=1e-4)


def test_shards_resume_bit_equal(bases, tmp_path):
    noisy = {**ODD, "head_dropout": 0.1, "base_part": {"dropout": 0.1}}
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", **noisy)
    whole = train_sharded(2, recipe, tmp_path / "whole")
    run = train_sharded(2, recipe, tmp_path / "run", stop=2)
    train_sharded(2, recipe, run)
    jobs.assert_same(whole, run)


def train_declining(recipe, run, stop=None):
    """As `train`, with every evaluation worse than the one before: none but the first is saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.training.finetuning, "selection_value", lambda *_: next(falling))
        falling = itertools.count(0, -1)
        return train(recipe, run, stop)


def test_shards_are_in_place_again_after_every_evaluation(bases, tmp_path):
    """A pass without a backward one leaves weights gathered that the optimizer does not know."""
    often = {**ODD, "evaluations": 3, "checkpoint_updates": 1}
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **often)
    one, many = (tmp_path / name for name in ("one", "many"))
    assert train_declining(recipe, one) == 0
    train_sharded(2, recipe, many, function=train_declining)
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(many), rel=1e-4)
    alone, shards = (
        checkpoint.load_latest_checkpoint(path / "checkpoints")[0].tensors for path in (one, many)
    )
    assert alone.keys() == shards.keys(), "moments too"
    torch.testing.assert_close(shards, alone, rtol=1e-4, atol=1e-6)


def test_one_process_needs_no_shards(bases, tmp_path, monkeypatch):
    for name, value in SHARDS.items():
        monkeypatch.setenv(name, value)
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    run = jobs.train(recipe, tmp_path / "run")
    assert all(tensor.isfinite().all() for tensor in jobs.weights(run).values())
    assert torch.distributed.is_initialized() is False


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"FSDP_VERSION": "1"}, "version 2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED"),
    ],
)
def test_unsupported_options_are_refused(options, what, monkeypatch):
    for name, value in {**SHARDS, **options}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=what):
        fsdp_requested()


def test_fsdp_is_off_by_default(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    assert fsdp_requested() is False
