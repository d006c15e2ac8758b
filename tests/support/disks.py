"""Small and read-only disks for tests, where a tmpfs may be mounted."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of `size` ("1m") at `folder`; skips the test where mounting is forbidden."""
    folder.mkdir()
    if os.geteuid() != 0 or _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder):
        pytest.skip("this user cannot mount a tmpfs")
    try:
        yield folder
    finally:
        _run("umount", folder)


def make_read_only(disk: Path) -> None:
    assert _run("mount", "-o", "remount,ro", disk) == 0


def _run(*words: str | Path) -> int:
    return subprocess.run(words, capture_output=True, check=False).returncode


def names(folder: Path) -> list[str]:
    """The names in the folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def mode_of_files(path: Path) -> set[int]:
    """The permissions of a file, or of a folder and all that is in it."""
    return {one.stat().st_mode & 0o777 for one in (path, *path.rglob("*"))}
