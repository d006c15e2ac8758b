"""Detects out-of-memory errors on CPU and CUDA. Does not import torch."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch (on any device) or of Python says that memory ran out."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "DefaultCPUAllocator" in str(error)


def catch_out_of_memory(run: Callable[[], Result], can_retry: bool) -> tuple[Result | None, bool]:
    """Calls `run`; returns its result, and whether memory ran out.

    Raises:
        MemoryError, RuntimeError: Memory ran out and the caller has nothing smaller to try.
    """
    try:
        return run(), False
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or not can_retry:
            raise
    return None, True
