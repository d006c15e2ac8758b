"""What an error looks like that says memory is lacking, and what is done about it."""

from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def is_out_of_memory(error: BaseException) -> bool:
    """Whoever says so: torch on a GPU or on a CPU, or Python. Torch is not imported for it."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "DefaultCPUAllocator" in str(error)


def catch_out_of_memory(run: Callable[[], Found], smaller: bool) -> tuple[Found | None, bool]:
    """What `run` gives, and whether memory was lacking for it.

    The error is raised where nothing `smaller` could be tried instead.
    """
    try:
        return run(), False
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or not smaller:
            raise
    return None, True
