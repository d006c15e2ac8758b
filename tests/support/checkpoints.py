"""Checkpoints for tests: each update has its own tensors and metadata."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.checkpointing.checkpoint import Checkpoint, save_checkpoint


def tensors_of(update: int) -> dict[str, Tensor]:
    """Tensors that no other update has, of several types."""
    draw = torch.Generator().manual_seed(update)
    weight = torch.randn(7, 5, generator=draw)
    return {
        "weight": weight,
        "half": weight.T.bfloat16(),
        "step": torch.tensor(float(update)),
        "generator": draw.get_state(),
        "empty": torch.empty(0, 3, dtype=torch.int64),
    }


def metadata_of(update: int) -> dict[str, Any]:
    return {"update": update, "best": -math.inf, "names": ["a", "ü\ud800"], "rate": 0.1 * update}


def assert_checkpoint(checkpoint: Checkpoint | None, update: int) -> None:
    """The checkpoint holds exactly the tensors and the metadata of that update."""
    assert checkpoint is not None
    assert checkpoint.metadata == metadata_of(update)
    torch.testing.assert_close(checkpoint.tensors, tensors_of(update), rtol=0, atol=0)


def save_checkpoints(folder: Path, *updates: int) -> None:
    for update in updates:
        save_checkpoint(folder, update, tensors_of(update), metadata_of(update))
