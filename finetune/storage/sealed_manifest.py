"""A record of the files in a folder, sealed: their names, sizes and SHA-256 in a JSON file.

    {"format": ..., "name": "update-00000120", "run": "5f0c...", "files": {...}, "seal": ...}

It is written last, so a folder that has one is whole.
"""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from finetune.storage import files
from finetune.storage import json_files as json_text
from task_formats import UsageError

MANIFEST = "manifest.json"
_LARGEST = 2**20


class FileRecord(NamedTuple):
    """A file as it was written."""

    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """What a folder was written with."""

    format: str
    name: str
    """Of the folder."""
    files: Mapping[str, FileRecord]
    run: str | None = None
    """The identity of the run that wrote it, where that has one."""

    def encode(self) -> bytes:
        """The text of manifest.json; the seal makes every byte of it count."""
        run = {} if self.run is None else {"run": self.run}
        body = {"format": self.format, "name": self.name, **run, "files": self.files}
        seal = sha256(json_text.encode(body)).hexdigest()
        return json_text.encode({**body, "seal": seal}, indent=1)


def read_manifest(folder: Path, form: str, run: str | None = None) -> Manifest:
    """The manifest in a folder; UsageError unless no byte has changed and `run` wrote it.

    Without `run` any run may have written it; a manifest that names none is anybody's.
    """
    where = folder / MANIFEST
    data = files.read_regular_file(where, _LARGEST)
    content = json_text.decode(data, str(where))
    if not isinstance(content, dict) or content.get("format") != form:
        raise UsageError(f"not of the format {form!r}", where=str(where))
    name, entries, writer = content.get("name"), _entries(content.get("files")), content.get("run")
    if not isinstance(name, str) or not isinstance(writer, str | None) or entries is None:
        raise UsageError("damaged: it does not list files", where=str(where))
    found = Manifest(form, name, entries, writer)
    if data != found.encode():
        raise UsageError("damaged: its content does not match its seal", where=str(where))
    if run is not None and writer not in (None, run):
        raise UsageError("belongs to another run", where=str(where))
    return found


def _entries(listed: Any) -> dict[str, FileRecord] | None:
    """Files by name; None where that is no such list."""
    if not isinstance(listed, dict) or not all(isinstance(x, dict) for x in listed.values()):
        return None
    if not all(x.keys() == {"bytes", "sha256"} for x in listed.values()):
        return None
    found = {name: FileRecord(x["bytes"], x["sha256"]) for name, x in listed.items()}
    right = all(type(x.bytes) is int and type(x.sha256) is str for x in found.values())
    return found if right else None


def check_file(path: Path, expected: FileRecord) -> None:
    """UsageError unless the file is what was written."""
    # The size first: it costs nothing, and names the commonest damage.
    with files.explain_os_errors(path), files.open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    compare(path, expected, FileRecord(size, expected.sha256))
    compare(path, expected, FileRecord(size, files.hash_file(path)))


def compare(path: Path, expected: FileRecord, found: FileRecord) -> None:
    """UsageError where a file is not what was written."""
    if found.bytes != expected.bytes:
        what = f"damaged: {found.bytes:,} bytes, where {expected.bytes:,} were written"
        raise UsageError(what, where=str(path))
    if found.sha256 != expected.sha256:
        raise UsageError("damaged: its content is not what was written", where=str(path))


def seal_folder(folder: Path, form: str, run: str | None = None) -> None:
    """Writes the manifest of all files that are in a folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, files.hash_file(path))
        for path in paths
        if path != folder / MANIFEST
    }
    manifest = Manifest(form, files.final_name(folder), entries, run)
    files.write_atomically(folder / MANIFEST, manifest.encode())


def check_folder(folder: Path, form: str, run: str | None = None) -> None:
    """UsageError unless all files of the manifest are there as they were written."""
    for name, entry in read_manifest(folder, form, run).files.items():
        check_file(files.safe_join(folder, name), entry)
