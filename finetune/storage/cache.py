"""The entries of the user's cache: their sizes, their limit, and how to clear it.

CACHE/0123...cdef/    encoded rows (finetune.data.token_store); the least recently used go first
CACHE/bases/NAME/     GGUF files as transformers folders (finetune.models.gguf_files)
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from task_formats import UsageError

LIMIT = "GPTFT_CACHE_LIMIT"
"""Environment variable: the most GiB of encoded rows."""
DEFAULT_LIMIT = 20.0
MANIFEST = "manifest.json"
"""Its time of modification says when encoded rows were used."""
_ENCODED, _PARTIAL = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}\.partial-.*")
_PARTIAL_SECONDS = 86_400
"""After this time an entry that is not complete was left by a kill."""
_ENFORCED: set[Path] = set()
"""The caches whose limit this process has enforced."""


class CacheEntry(NamedTuple):
    """A folder of the cache."""

    path: Path
    kind: Literal["encoded rows", "converted bases"]
    size: int
    """Bytes."""
    used: float
    """When it was last used, in seconds since the epoch."""


def list_entries(cache: Path) -> list[CacheEntry]:
    """Returns all complete entries, the least recently used first."""
    entries = []
    for path in _folders(cache):
        if _ENCODED.fullmatch(path.name):
            with suppress(OSError):  # Another process may delete it.
                used = (path / MANIFEST).stat().st_mtime
                entries.append(CacheEntry(path, "encoded rows", _size(path), used))
    for path in _folders(cache / "bases"):
        if path.suffix not in (".partial", ".old"):
            with suppress(OSError):
                used = path.stat().st_mtime
                entries.append(CacheEntry(path, "converted bases", _size(path), used))
    return sorted(entries, key=lambda entry: entry.used)


def mark_used(entry: Path) -> None:
    """Makes an entry of encoded rows the most recently used one."""
    with suppress(OSError):  # The cache may be read-only.
        os.utime(entry / MANIFEST)


def read_limit() -> int:
    """Returns the most bytes of encoded rows: $GPTFT_CACHE_LIMIT in GiB, or 20 GiB.

    Raises:
        UsageError: The variable is not a number of GiB.
    """
    text = os.environ.get(LIMIT) or str(DEFAULT_LIMIT)
    with suppress(ValueError, OverflowError):
        if (limit := int(float(text) * 2**30)) >= 0:
            return limit
    what = f"{text!r} is not a number of GiB"
    raise UsageError(what, where=LIMIT, cure=f"Set it to {DEFAULT_LIMIT:g}, or unset it.")


def enforce_limit(cache: Path, keep: Path) -> None:
    """Deletes the least recently used encoded rows until all together are within the limit.

    The entry `keep`, which is in use, stays. Other processes that use a deleted entry are not
    disturbed: its files exist until they are closed.
    """
    entries = [entry for entry in list_entries(cache) if entry.kind == "encoded rows"]
    total, limit = sum(entry.size for entry in entries), read_limit()
    for entry in entries:
        if total <= limit:
            break
        if entry.path != keep:
            shutil.rmtree(entry.path, ignore_errors=True)
            total -= entry.size
    for path in filter(lambda path: _PARTIAL.fullmatch(path.name), _folders(cache)):
        with suppress(OSError):  # Its process may complete it.
            if path.stat().st_mtime < time.time() - _PARTIAL_SECONDS:
                shutil.rmtree(path)


def enforce_limit_once(cache: Path, keep: Path) -> None:
    """Enforces the limit once per process, because it looks at every file."""
    if cache not in _ENFORCED:
        _ENFORCED.add(cache)
        enforce_limit(cache, keep)


def clear(cache: Path) -> list[CacheEntry]:
    """Deletes all entries and returns them. They are made again when they are needed."""
    entries = list_entries(cache)
    for entry in entries:
        shutil.rmtree(entry.path)
    return entries


def _folders(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
