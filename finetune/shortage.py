"""What an error looks like that says memory is lacking."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whoever says so: torch on a GPU or on a CPU, or Python. Torch is not imported for it."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or "DefaultCPUAllocator" in str(error)
