"""Detects out-of-memory errors on CPU and CUDA. Does not import torch."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch (on any device) or of Python says that memory ran out."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "DefaultCPUAllocator" in str(error)
