"""Freed memory stays with the process, unless the environment has other settings."""

import subprocess
import sys

import pytest

from finetune.models.speedups.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from finetune.models.speedups.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(20):
    torch.ones(16 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of Linux's C library")
def test_large_blocks_are_used_again_without_page_faults():
    # A block of 64 MiB is 16,384 pages; ten of them are made.
    assert faults("keep") < 10_000 < 100_000 < faults("leave")


def test_settings_in_the_environment_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()
