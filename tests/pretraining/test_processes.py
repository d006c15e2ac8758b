"""Pre-training in several processes, of which one lacks memory: what one alone would have made."""

import os

import pytest
import torch
from safetensors.torch import load_file

from finetune.checkpointing.run_folder import read_result
from finetune.models.task_model import LanguageModel
from finetune.pretraining import pretrain
from finetune.training.loop import count_tokens
from task_formats import UsageError
from tests.pretraining.test_pretraining import books, plan  # noqa: F401  (a fixture)
from tests.support import warm
from tests.support.together import SHARDS

CALM = {"dropout": 0.0, "epsilon": 1e-3, "batch_size": 7}


def pretrain_in_little(told, folder, most: int) -> int:
    """The second process has no memory for passes of more than so many tokens."""
    forward = LanguageModel.forward

    def forward_or_fail(self, batch, lm=False):
        if self.training and os.environ["RANK"] == "1" and count_tokens(batch) > most:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, batch, lm)

    LanguageModel.forward = forward_or_fail
    pretrain(told, folder)
    return 0


def test_two_processes_in_little_memory_make_the_base_of_one(books, tmp_path) -> None:  # noqa: F811
    told = plan(books, **CALM)
    pretrain(told, tmp_path / "one")
    output = tmp_path / "output"
    children = warm.start_many(2, pretrain_in_little, told, tmp_path / "two", 100, output=output)
    assert warm.join(children) == [0, 0], output.with_suffix(".1").read_text()
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
    alone, together = (read_result(tmp_path / name)["scores"] for name in ("one", "two"))
    assert together["evaluate"] == pytest.approx(alone["evaluate"], rel=1e-4)


def test_shards_are_refused(books, tmp_path, monkeypatch) -> None:  # noqa: F811
    for name, value in SHARDS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="pre-training has no FSDP"):
        pretrain(plan(books), tmp_path / "run")
