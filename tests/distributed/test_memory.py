"""Limits of memory: in training on several processes, and in evaluation."""

import os
import re
from pathlib import Path

import pytest
import torch

import finetune
from finetune.checkpointing import checkpoint
from finetune.distributed import setup
from finetune.distributed.setup import choose_batch_config, create_accelerator
from finetune.models.pretrained import load_decoder
from finetune.models.task_model import TaskModel
from finetune.recipe.schema import BaseConfig
from finetune.training.loop import count_tokens
from tests.conftest import ROOT
from tests.support import jobs
from tests.support.processes import SHARDS, run_processes, train, train_in_processes

ODD = {"train": 22, "held_out": 10, "batch_size": 10, "epsilon": 1e-3}


def limit_memory(monkeypatch, most: int, when=lambda model: True) -> list[int]:
    """Passes of more than `most` tokens run out of memory; returns the sizes of the others."""
    fitted: list[int] = []
    forward = TaskModel.forward

    def forward_or_fail(self, batch, lm=False):
        if when(self) and count_tokens(batch) > most:
            raise torch.OutOfMemoryError("out of memory")
        fitted.append(count_tokens(batch))
        return forward(self, batch, lm)

    monkeypatch.setattr(TaskModel, "forward", forward_or_fail)
    return fitted


def train_with_little_memory(recipe, run, stop=None):
    """The second process alone runs out of memory, in passes of more than 70 tokens."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["RANK"] == "1":
            limit_memory(patch, 70, lambda model: model.training)
        return train(recipe, run, stop)


def run_out_in_a_backward_pass(recipe, run, stop=None):
    """The second process runs out of memory once, in a backward pass."""
    if os.environ["RANK"] == "1":
        calls = []

        def fail(gradient):
            calls.append(1)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("out of memory")

        forward = TaskModel.forward

        def watched(self, batch, lm=False):
            outputs = forward(self, batch, lm)
            if outputs.logits.requires_grad and len(batch.last_index) > 1:
                outputs.logits.register_hook(fail)
            return outputs

        TaskModel.forward = watched
    return train(recipe, run, stop)


@pytest.mark.parametrize("function", [train_with_little_memory, run_out_in_a_backward_pass])
def test_processes_repeat_an_update_together(function, bases, tmp_path) -> None:
    """With the same result; the smaller limit is kept in the checkpoint."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    two = train_in_processes(2, recipe, tmp_path / "two", function=function)
    assert jobs.distance(jobs.weights(one), jobs.weights(two)) < 1e-5
    assert jobs.numbers(one) == pytest.approx(jobs.numbers(two), rel=1e-4)
    state, _ = checkpoint.load_latest_checkpoint(two / "checkpoints")
    alone, _ = checkpoint.load_latest_checkpoint(one / "checkpoints")
    assert (
        state.metadata["progress"]["max_tokens_per_forward"]
        < alone.metadata["progress"]["max_tokens_per_forward"]
    )


def expect_advice(recipe, run, stop=None):
    """Every process runs out of memory in its first pass, and says how to continue."""
    with pytest.MonkeyPatch.context() as patch:
        limit_memory(patch, 70, lambda model: model.training)
        with pytest.raises(torch.OutOfMemoryError) as caught:
            train(recipe, run)
    (note,) = caught.value.__notes__
    quoted, changed = re.subn(r"\d+$", "4000", note)
    assert changed == 1
    assert quoted in (ROOT / "docs" / "several_machines.md").read_text(encoding="utf-8")
    return 0


def test_shards_without_memory_end_with_a_cure(bases, tmp_path) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **ODD)
    train_in_processes(2, recipe, tmp_path / "run", environment=SHARDS, function=expect_advice)


def choose_with_own_memory(base: str, folder: Path) -> int:
    """Writes the limit of this process, whose machine has memory for 10,000 tokens or 9,000."""
    decoder, rank = load_decoder(BaseConfig(path=base)).decoder, int(os.environ["RANK"])
    width = decoder.config.num_hidden_layers * decoder.config.hidden_size
    memory = 2 * 4 * 80 * width * (10_000 - 1_000 * rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "total_memory", lambda: memory)
        accelerator = create_accelerator("fp32", "cpu")
        config = choose_batch_config(decoder, accelerator, 0, training=True)
    (folder / f"limit-{rank}").write_text(f"{config.max_tokens_per_forward}")
    return 0


def test_machines_with_different_memory_make_equal_passes(bases, tmp_path) -> None:
    """Sharded processes would wait for each other for ever."""
    base, output = str(bases("gpt2")), tmp_path / "out"
    run_processes(2, choose_with_own_memory, base, tmp_path, output=output)
    assert [(tmp_path / f"limit-{rank}").read_text() for rank in (0, 1)] == ["9000", "9000"]


def test_an_evaluation_is_made_in_pieces(bases, tmp_path, monkeypatch) -> None:
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path / "data", **ODD)
    run = jobs.train(recipe, tmp_path / "run")
    predictor, rows = finetune.load(run), jobs.rows("multiple_choice", 30, seed=3)
    scores, predictions = predictor.evaluate(), predictor.predict(rows)
    sizes = [len(example.choices) for example in map(predictor.task.example, rows, map(str, rows))]
    fitted = limit_memory(monkeypatch, 250)
    assert predictor.evaluate() == pytest.approx(scores, rel=1e-5)
    again = predictor.predict(rows)
    assert [p.id for p in again] == [p.id for p in predictions]
    assert [len(p.scores) for p in again] == sizes
    for one, other in zip(predictions, again, strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-4)
    assert 0 < max(fitted) <= 250


def test_training_goes_on_as_ever_after_an_evaluation_in_pieces(
    bases, tmp_path, monkeypatch
) -> None:
    """With dropout: the model is one to be trained again, wherever the evaluation was broken."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **jobs.NOISY)
    whole, forward, lacking = jobs.train(recipe, tmp_path / "whole"), TaskModel.forward, [1]

    def forward_or_fail(self, batch, lm=False):
        if not self.training and lacking:
            lacking.pop()
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch, lm)

    monkeypatch.setattr(TaskModel, "forward", forward_or_fail)
    run = jobs.train(recipe, tmp_path / "run")
    assert not lacking
    assert jobs.distance(jobs.weights(whole), jobs.weights(run)) == 0


def test_a_row_that_does_not_fit_is_an_error(bases, tmp_path, monkeypatch) -> None:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    predictor = finetune.load(jobs.train(recipe, tmp_path / "run"))
    limit_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        predictor.evaluate()
