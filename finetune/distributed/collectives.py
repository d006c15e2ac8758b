"""What the processes of a job tell each other without waiting for their devices."""

import functools
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import distributed


def all_reduce_max(numbers: Sequence[int], accelerator: Accelerator) -> list[int]:
    """The highest of each number over all processes, which all call this at the same point.

    The numbers go from CPU to CPU: hosts wait for each other, and for no device.
    """
    if accelerator.num_processes == 1:
        return list(numbers)
    own = torch.tensor(numbers, dtype=torch.int64)
    distributed.all_reduce(own, distributed.ReduceOp.MAX, group=_group())
    return [int(number) for number in own]


def barrier(accelerator: Accelerator) -> None:
    """Waits until all processes are here. RuntimeError where one of them has ended."""
    all_reduce_max([0], accelerator)


@functools.cache
def _group() -> distributed.ProcessGroup | None:
    """Processes that talk over the CPU; None where that is what they do anyway."""
    if distributed.get_backend() == "gloo":
        return None
    return distributed.new_group(backend="gloo")
