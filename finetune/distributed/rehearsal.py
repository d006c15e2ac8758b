"""Passes of shards that a process makes by itself, to see whether there is memory for them.

A pass of shards is one of all processes: where it fails on one of them, the others wait for that
one for ever. So a pass that may be too large is rehearsed. Room is made for gathered weights and
exchanged gradients as always, but none is sent: nobody waits, and whoever fails can say so. What a
rehearsal computes is worth nothing; its shapes, and so its memory, are those of the pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule


@dataclass(frozen=True)
class _Transfer:
    """What FSDP2 asks for instead of its own transfers, which it makes alike."""

    alone: bool

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for what is to be received."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Transfer):
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: distributed.ProcessGroup,
        async_op: bool = False,
    ) -> distributed.Work | None:
        if self.alone:
            output_tensor.zero_()
            return None
        return distributed.all_gather_single(output_tensor, input_tensor, group, async_op)


class _Reduce(_Transfer):
    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: distributed.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> distributed.Work | None:
        if self.alone:
            output_tensor.zero_()
            return None
        return distributed.reduce_scatter_single(output_tensor, input_tensor, op, group, async_op)


@contextmanager
def rehearse(model: nn.Module, *, gradients: bool = True) -> Iterator[None]:
    """Within the block this process makes passes of a model in shards by itself.

    They begin with gradients, as all but the first of an update do, unless they have no backward
    passes. Afterwards there are none, and the model is as it was, also where a pass failed halfway.
    """
    root = cast(FSDPModule, model)
    for shard in model.parameters():
        has = gradients and shard.requires_grad
        shard.grad = torch.zeros_like(shard) if has else None
    _connect(model, alone=True)
    try:
        yield
    finally:
        # Where a pass failed, gathered weights may have gradients: the next pass would add to them.
        model.zero_grad(set_to_none=True)
        # What it resets is made in a first forward pass; a batch may not have come so far.
        with suppress(AttributeError):
            root.reset_iter_state()
        model.zero_grad(set_to_none=True)
        _connect(model, alone=False)


def _connect(model: nn.Module, alone: bool) -> None:
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.set_custom_all_gather(cast(Any, _Gather(alone)))
            part.set_custom_reduce_scatter(cast(Any, _Reduce(alone)))
