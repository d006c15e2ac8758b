"""Encoding all examples once: into flat arrays, kept in a cache that checks itself."""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune.data.examples import BadRow, ReadReport
from finetune.data.rows import RowLocation
from finetune.data.token_store import DTYPES, Array, Arrays, StoreOffsets, TokenStore, flatten
from task_formats import Encoded, Example, UsageError, ViewEncoder

VERSION = 1
"""Raised whenever the layout of a cached store changes."""

_BATCH = 1000
_MANIFEST = "manifest.json"
_ABANDONED = 24 * 3600
"""Seconds after which a half-written folder is taken for a dead process's."""


def encode_examples(
    examples: Iterable[Example],
    encoder: ViewEncoder,
    cache: Path | None,
    key: str,
    report: ReadReport | None = None,
) -> TokenStore:
    """The encodings of all examples, the same and in the same order as `encoder.encode` gives.

    With a cache they are kept there under a hash of `key`, which must name everything they
    depend on: contents, task, tokenizer, limits. The next call maps them from the files and
    reads no example; `report` then says what the first call found. A damaged entry is made
    anew. Raises UsageError where the cache cannot be written.
    """
    if cache is None:
        streams = {name: io.BytesIO() for name in DTYPES}
        facts = _write(examples, encoder, dict(streams))
        arrays = {name: _view(streams[name], name) for name in DTYPES}
        return TokenStore(Arrays(**arrays), whole=facts["whole"])
    report = report if report is not None else ReadReport()
    folder = cache / hashlib.sha256(f"{VERSION}\n{key}".encode()).hexdigest()[:32]
    found = _load(folder, report)
    if found is None:
        try:
            _build(folder, examples, encoder, report)
        except OSError as error:
            what = f"cannot write prepared data: {error.strerror}"
            cure = "Free some space there, or set GPTFT_CACHE to another folder."
            raise UsageError(what, where=str(cache), cure=cure) from error
        found = _load(folder, report)
    if found is None:
        raise UsageError("prepared data changed under our hands", where=str(folder))
    return found


def _build(
    folder: Path, examples: Iterable[Example], encoder: ViewEncoder, report: ReadReport
) -> None:
    """Write a store beside its place and rename it; another process may do the same."""
    _sweep(folder)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{time.time_ns()}")
    partial.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(partial / name, "wb")) for name in DTYPES}
            facts = _write(examples, encoder, dict(files))
        facts["report"] = _dump(report)
        (partial / _MANIFEST).write_text(json.dumps(facts), encoding="utf-8")
        # No fsync: what a power cut damages is found by its hash and made anew.
        if folder.exists() and _load(folder, ReadReport()) is None:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what processes left that died while they wrote this entry."""
    for partial in folder.parent.glob(f"{folder.name}.partial-*"):
        if time.time() - partial.stat().st_mtime > _ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)


def _write(
    examples: Iterable[Example], encoder: ViewEncoder, streams: dict[str, BinaryIO]
) -> dict[str, Any]:
    """Append batch after batch to the streams; returns sizes, hashes and the kind of label."""
    hashes = {name: hashlib.sha256() for name in DTYPES}
    sizes = dict.fromkeys(DTYPES, 0)

    def append(name: str, array: Array) -> None:
        content = array.astype(DTYPES[name], copy=False).tobytes()
        streams[name].write(content)
        hashes[name].update(content)
        sizes[name] += len(content)

    for name in ("segments", "examples", "id_ends"):
        append(name, np.zeros(1, DTYPES[name]))
    totals, whole = StoreOffsets(), True
    for batch in _batches(examples, encoder):
        whole = whole and all(isinstance(item.label, int | None) for item in batch)
        arrays, totals = flatten(batch, totals)
        for name, array in arrays._asdict().items():
            append(name, array)
    files = {name: [sizes[name], hashes[name].hexdigest()] for name in DTYPES}
    return {"version": VERSION, "whole": whole, "files": files}


def _batches(examples: Iterable[Example], encoder: ViewEncoder) -> Iterator[list[Encoded]]:
    remaining = iter(examples)
    while batch := list(islice(remaining, _BATCH)):
        yield encoder.encode(batch)


def _load(folder: Path, report: ReadReport) -> TokenStore | None:
    """The store of a folder, its report filled in; None where anything is missing or damaged."""
    try:
        facts = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        whole = all(_is_whole(folder / name, *facts["files"][name]) for name in DTYPES)
        if not whole:
            return None
        arrays = {name: _map(folder / name, name) for name in DTYPES}
        _fill(report, facts["report"])
        return TokenStore(Arrays(**arrays), whole=bool(facts["whole"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    if path.stat().st_size != size:
        return False
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == sha256


def _map(path: Path, name: str) -> Array:
    if not path.stat().st_size:
        return np.empty(0, DTYPES[name])
    # A plain array over the map: slices of np.memmap itself are several times slower.
    return np.asarray(np.memmap(path, DTYPES[name], mode="r"))


def _view(stream: io.BytesIO, name: str) -> Array:
    return np.frombuffer(stream.getbuffer(), DTYPES[name])


def _dump(report: ReadReport) -> dict[str, Any]:
    skipped = [[*bad.location, bad.id, bad.reason] for bad in report.skipped]
    return {"rows": report.rows, "unlabelled": report.unlabelled, "skipped": skipped}


def _fill(report: ReadReport, facts: dict[str, Any]) -> None:
    report.rows, report.unlabelled = facts["rows"], facts["unlabelled"]
    report.skipped[:] = [
        BadRow(RowLocation(*location), name, reason) for *location, name, reason in facts["skipped"]
    ]
