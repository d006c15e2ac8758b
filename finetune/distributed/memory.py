"""Out-of-memory errors on CPU and CUDA, and free memory. Does not import torch."""

import ctypes
import errno
import sys
from contextlib import suppress

_MESSAGES = (
    "DefaultCPUAllocator",
    # oneDNN says no more than that a step failed; there is hardly another reason for these two.
    "could not create a primitive",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch (on any device) or of Python says that memory ran out."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    return any(message in text for message in _MESSAGES) and "descriptor" not in text


def return_free_memory() -> None:
    """Returns free memory to the system. The C library of most Linux systems keeps it in pieces.

    Tensors of ever new sizes do not fit into the pieces, so the memory of the process would grow.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # Another C library, such as musl.
            ctypes.CDLL(None).malloc_trim(0)
