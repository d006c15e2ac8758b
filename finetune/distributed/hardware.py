"""What this machine has: devices, cores, threads and memory."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""The control groups of Linux, which limit containers and jobs, and those of this process."""


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
    """Bytes of memory of the machine, container or job; None where the system does not tell."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([total, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """The limits of memory of this process's control groups and those above, of both versions."""
    with suppress(OSError):  # Not on Linux.
        for line in _OWN_CGROUPS.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root = _CGROUPS / controllers
            file = "memory.limit_in_bytes" if controllers else "memory.max"
            # In a container the own group may be seen as the root.
            group = root / name.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    with suppress(OSError, ValueError):  # None, or "max".
                        yield int((folder / file).read_text(encoding="ascii"))
