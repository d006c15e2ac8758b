"""What this machine has: devices, cores, threads and memory."""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where Linux says how much memory a container may use."""


class Device(NamedTuple):
    """A device that can train."""

    name: str
    """As in --device."""
    model: str = ""
    memory: int | None = None
    """Bytes; None for the memory of the machine."""


def list_devices() -> list[Device]:
    """Returns the GPUs, or the CPU."""
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return [Device(f"cuda:{n}", one.name, one.total_memory) for n, one in enumerate(found)]
    if torch.accelerator.is_available() and (best := torch.accelerator.current_accelerator()):
        return [Device(best.type)]
    return [Device("cpu")]


def count_threads() -> int:
    """Threads that torch uses on the CPU."""
    return torch.get_num_threads()


def count_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes of memory of the machine or container; None where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # No container, or one without a limit ("max").
        total = min(total, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    return total
