"""A setting of the C library's memory allocator."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for the next allocation.

    By default glibc returns every large block to the system and soon requests it again, page by
    page. The setting is one of the whole process, so only the command line uses it. Settings in
    the environment (MALLOC_*, GLIBC_TUNABLES) take precedence.

    Returns:
        False where nothing was changed: not Linux, not glibc, or set in the environment.
    """
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if configured or sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(name, _LARGEST) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
