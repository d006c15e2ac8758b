"""Pre-training in two processes: the same losses, scores and weights as in one."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune.checkpointing.run_folder import read_result
from finetune.models.language_model import LanguageModel
from finetune.pretraining import Plan, pretrain
from finetune.pretraining.job import events
from finetune.training.loop import count_tokens
from task_formats import UsageError
from tests.pretraining.test_pretraining import books, plan  # noqa: F401  (a fixture)
from tests.support import jobs
from tests.support.processes import SHARDS, consume, run_processes, train_in_processes

CALM = {"dropout": 0.0, "epsilon": 1e-3, "batch_size": 7}
"""Settings under which rounding errors stay small; 7 blocks cannot be shared evenly."""


def pretrain_here(plan: Plan, run: Path, stop: int | None = None) -> int:
    return consume(events(plan, run, resume=True), stop)


def weights(run: Path) -> dict:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def alone(books, tmp_path_factory) -> Path:  # noqa: F811
    """A run in one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    pretrain(plan(books, **CALM), run)
    return run


def test_two_processes_train_as_one(books, alone, tmp_path):  # noqa: F811
    run = train_in_processes(2, plan(books, **CALM), tmp_path / "two", function=pretrain_here)
    assert jobs.distance(weights(alone), weights(run)) < 1e-4
    losses, others = (
        [event["loss"] for event in jobs.log(path) if event["event"] == "train"]
        for path in (alone, run)
    )
    assert losses == pytest.approx(others, rel=1e-5)
    scores = [read_result(path)["scores"]["evaluate"] for path in (alone, run)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_two_interrupted_processes_resume_bit_equal(books, tmp_path):  # noqa: F811
    with_dropout = plan(books, dropout=0.1)
    train_in_processes(2, with_dropout, tmp_path / "whole", function=pretrain_here)
    train_in_processes(2, with_dropout, tmp_path / "run", stop=3, function=pretrain_here)
    train_in_processes(2, with_dropout, tmp_path / "run", function=pretrain_here)
    assert jobs.distance(*(weights(tmp_path / run) for run in ("whole", "run"))) == 0
    assert jobs.log(tmp_path / "whole") == jobs.log(tmp_path / "run")


def pretrain_with_little_memory(plan: Plan, run: Path, max_tokens: int) -> int:
    """The second process runs out of memory in forward passes of more than `max_tokens`."""
    forward = LanguageModel.forward

    def forward_or_fail(self, batch, lm=False):
        if self.training and os.environ["RANK"] == "1" and count_tokens(batch) > max_tokens:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch, lm)

    LanguageModel.forward = forward_or_fail
    pretrain(plan, run)
    return 0


def test_a_process_with_little_memory_does_not_change_the_result(books, alone, tmp_path):  # noqa: F811
    run = tmp_path / "two"
    run_processes(2, pretrain_with_little_memory, plan(books, **CALM), run, 100, output=run)
    assert jobs.distance(weights(alone), weights(run)) < 1e-4
    scores, others = (read_result(path)["scores"]["evaluate"] for path in (alone, run))
    assert others == pytest.approx(scores, rel=1e-4)


def test_fsdp_is_refused(books, tmp_path, monkeypatch):  # noqa: F811
    for name, value in SHARDS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="FSDP"):
        pretrain(plan(books), tmp_path / "run")
