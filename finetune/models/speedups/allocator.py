"""How this process's C library treats freed memory."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings, from glibc's malloc.h."""
_MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Freed memory stays with the process, to be used again; False where that cannot be asked for.

    Left alone, glibc gives every large block back to the system and takes it anew a moment later,
    page by page: a tenth of an update's time. It is a setting of the whole process, so only the
    command line makes it. Whoever chose settings in the environment keeps them.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if chosen or sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(name, _MOST) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD))
