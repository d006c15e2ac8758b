"""States for tests: each update has tensors and facts of its own."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.checkpointing.checkpoint import CheckpointState, save


def tensors_of(update: int) -> dict[str, Tensor]:
    """Tensors that no other update has, of several types."""
    draw = torch.Generator().manual_seed(update)
    weight = torch.randn(7, 5, generator=draw)
    return {
        "weight": weight,
        "tied": weight,
        "half": weight.T.bfloat16(),
        "step": torch.tensor(float(update)),
        "generator": draw.get_state(),
        "empty": torch.empty(0, 3, dtype=torch.int64),
    }


def facts_of(update: int) -> dict[str, Any]:
    names = ["a", "ü\ud800"]
    return {"update": update, "best": float("-inf"), "names": names, "rate": 0.1 * update}


def expect_state(state: CheckpointState | None, update: int) -> None:
    """The state holds the very tensors and facts of that update."""
    assert state is not None
    assert state.facts == facts_of(update)
    expected = tensors_of(update)
    assert state.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state.tensors[name].dtype == tensor.dtype
        assert torch.equal(state.tensors[name], tensor)


def save_states(folder: Path, *updates: int) -> None:
    for update in updates:
        save(folder, update, tensors_of(update), facts_of(update))
