"""A cache of encoded examples, so that a second run reads none of its rows again.

One folder per entry: a file for each array of a TokenStore, and the manifest with their hashes,
the kind of label and the read report.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from finetune.data.examples import BadRow, ReadReport
from finetune.data.rows import RowLocation
from finetune.data.token_store import DTYPES, Array, Arrays, TokenStore, write_examples
from finetune.storage.manifest import (
    Manifest,
    read_manifest,
    record_file,
    verify_files,
    write_manifest,
)
from task_formats import Example, UsageError, ViewEncoder

FORMAT = "gptft encoded examples, version 2"
"""The version is raised whenever the files of an entry change."""

_MANIFEST = "manifest.json"
_ABANDONED = 24 * 3600
"""Seconds after which an incomplete entry is taken to be of a process that was killed."""


def cache_folder() -> Path:
    """Where encoded rows are kept between runs: $GPTFT_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gptft"
    return Path(os.environ.get("GPTFT_CACHE", default))


def load_or_encode(
    examples: Iterable[Example], encoder: ViewEncoder, cache: Path, key: str, report: ReadReport
) -> TokenStore:
    """Returns encoded examples, mapped from files in the cache.

    The first call encodes the examples; the next call with the same key reads none of them. A
    damaged entry is replaced.

    Args:
        examples: Examples; reading them fills the report.
        encoder: Encodes them.
        cache: Folder of all entries.
        key: Names everything the result depends on: contents, task, tokenizer, limits.
        report: Is filled as at the first call when the entry exists.

    Raises:
        UsageError: The cache cannot be written.
    """
    folder = cache / hashlib.sha256(f"{FORMAT}\n{key}".encode()).hexdigest()[:32]
    store = _load(folder, report)
    if store is None:
        try:
            _write_entry(folder, examples, encoder, report)
        except OSError as error:
            what = f"cannot write prepared data: {error.strerror}"
            cure = "Free some space there, or set GPTFT_CACHE to another folder."
            raise UsageError(what, where=str(cache), cure=cure) from error
        store = _load(folder, report)
    if store is None:
        cure = "Start again, or set GPTFT_CACHE to another folder."
        what = "prepared data was changed by another process"
        raise UsageError(what, where=str(folder), cure=cure)
    return store


def _write_entry(
    folder: Path, examples: Iterable[Example], encoder: ViewEncoder, report: ReadReport
) -> None:
    """Writes an entry under a temporary name; several processes may do so at the same time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    with TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=folder.parent) as scratch:
        partial = Path(scratch, "entry")
        partial.mkdir()
        with ExitStack() as stack:
            streams = {name: stack.enter_context(open(partial / name, "wb")) for name in DTYPES}
            integer_labels = write_examples(examples, encoder, streams)
        # Not flushed to the disk: what a power failure damages, the hashes find.
        records = {name: record_file(partial / name) for name in DTYPES}
        metadata = {"integer_labels": integer_labels, "report": _dump_report(report)}
        write_manifest(partial / _MANIFEST, Manifest(FORMAT, records, metadata))
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # Otherwise another process was faster.
                raise


def _remove_abandoned(folder: Path) -> None:
    for partial in folder.parent.glob(f"{folder.name}.partial-*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)


def _load(folder: Path, report: ReadReport) -> TokenStore | None:
    """Maps an entry and fills the report; None if any part is missing or damaged."""
    try:
        manifest = read_manifest(folder / _MANIFEST, FORMAT)
        verify_files(folder, manifest)
        arrays = {name: _map(folder / name, DTYPES[name]) for name in DTYPES}
        integer_labels = bool(manifest.metadata["integer_labels"])
        _fill_report(report, manifest.metadata["report"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return TokenStore(Arrays(**arrays), integer_labels=integer_labels)


def _map(path: Path, dtype: np.dtype[Any]) -> Array:
    if not path.stat().st_size:
        return np.empty(0, dtype)
    # A plain array over the map: slices of np.memmap itself are several times slower.
    return np.asarray(np.memmap(path, dtype, mode="r"))


def _dump_report(report: ReadReport) -> dict[str, Any]:
    skipped = [[*bad.location, bad.id, bad.reason] for bad in report.skipped]
    return {"rows": report.rows, "unlabelled": report.unlabelled, "skipped": skipped}


def _fill_report(report: ReadReport, saved: dict[str, Any]) -> None:
    report.rows, report.unlabelled = saved["rows"], saved["unlabelled"]
    report.skipped[:] = [
        BadRow(RowLocation(*location), name, reason) for *location, name, reason in saved["skipped"]
    ]
