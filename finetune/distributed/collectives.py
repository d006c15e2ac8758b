"""Communication between the processes of a job."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed, nn

from finetune.distributed.signals import Request

BUCKET_BYTES = 32 * 2**20
"""Gradients are summed over processes in pieces of about this size."""


def all_reduce_max(numbers: Sequence[int], accelerator: Accelerator) -> list[int]:
    """Returns the highest of each number over all processes, which all call this together.

    The numbers travel between CPUs, so no process waits for a GPU.

    Raises:
        RuntimeError: Another process has ended.
    """
    if accelerator.num_processes == 1:
        return list(numbers)
    own = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(own, distributed.ReduceOp.MAX, group=_cpu_group())
    return [int(number) for number in own]


def barrier(accelerator: Accelerator) -> None:
    """Waits for all processes. Raises RuntimeError where one of them has ended."""
    all_reduce_max([0], accelerator)


def broadcast(value: Any, accelerator: Accelerator) -> Any:
    """Returns the value of the first process, on all processes."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, group=_cpu_group())
    return values[0]


def agree_on_request(
    request: Request | None, exit_code: int, accelerator: Accelerator
) -> tuple[Request | None, int]:
    """Returns the strongest request and the highest exit code of all processes.

    All processes call this at the same point, so that they save or stop together.
    """
    ranks: tuple[Request | None, ...] = (None, "save", "stop")
    strongest, highest = all_reduce_max([ranks.index(request), exit_code], accelerator)
    return ranks[strongest], highest


def all_reduce_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Sums the gradients of all processes in place.

    Every process computes a part of one sum, so the result is the gradient of the whole batch.
    Where only some processes have a gradient, the others contribute zeros.
    """
    parameters = list(parameters)
    if accelerator.num_processes == 1 or not parameters:
        return
    exists = all_reduce_max([p.grad is not None for p in parameters], accelerator)
    bucket: list[torch.Tensor] = []
    for parameter in itertools.compress(parameters, exists):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.nbytes for gradient in bucket) >= BUCKET_BYTES:
            _all_reduce(bucket)
            bucket = []
    if bucket:
        _all_reduce(bucket)


def _all_reduce(gradients: Sequence[torch.Tensor]) -> None:
    joined = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(joined)
    pieces = joined.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


@functools.cache
def _cpu_group() -> distributed.ProcessGroup | None:
    """A process group over the CPU; None where the default group is one."""
    return None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")
