"""Records of files, with which damage is noticed: size and SHA-256 of each, in a JSON file.

The manifest is written last, so a folder that has one is complete:

    records = {name: record_file(folder / name) for name in names}
    write_manifest(folder / "manifest.json", Manifest(FORMAT, records, metadata))

    manifest = read_manifest(folder / "manifest.json", FORMAT)
    verify_files(folder, manifest)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune.storage import json_files
from finetune.storage.files import (
    explain_os_errors,
    hash_file,
    read_regular_file,
    safe_join,
    write_atomically,
)
from task_formats import UsageError


class FileRecord(NamedTuple):
    """Size in bytes and SHA-256 (hexadecimal) of a file as it was written."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """What a manifest file holds: {"format", "files": {name: {"size", "sha256"}}, "metadata"}."""

    format: str
    files: Mapping[str, FileRecord]
    """By path, relative to the folder of the manifest."""
    metadata: Mapping[str, Any] = {}


def record_file(path: Path) -> FileRecord:
    """Returns size and hash of a file. Raises UsageError where it cannot be read."""
    with explain_os_errors(path):
        return FileRecord(path.lstat().st_size, hash_file(path))


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Raises UsageError unless every listed file is in the folder as it was written."""
    for name, written in manifest.files.items():
        path = safe_join(folder, name)
        if record_file(path) != written:
            raise UsageError("damaged: its size or SHA-256 is not the written one", where=str(path))


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest in one step. Call it after the files are complete."""
    write_atomically(path, json_files.encode(manifest, exact=True, indent=1))


def read_manifest(path: Path, expected_format: str) -> Manifest:
    """Reads a manifest. Raises UsageError where it is missing, damaged or of another format."""
    content = json_files.decode(read_regular_file(path), str(path))
    if not isinstance(content, dict) or content.get("format") != expected_format:
        raise UsageError(f"the format is not {expected_format!r}", where=str(path))
    try:
        records = {name: FileRecord(**record) for name, record in content["files"].items()}
        return Manifest(expected_format, records, {**content["metadata"]})
    except (KeyError, TypeError, AttributeError):
        raise UsageError("damaged: it does not list files", where=str(path)) from None
