"""Records of files: what was written is verified, and every damage is found."""

import hashlib
import os
from pathlib import Path

import pytest

from finetune.storage import json_files
from finetune.storage.manifest import (
    FileRecord,
    Manifest,
    read_manifest,
    record_file,
    verify_file,
    verify_files,
    write_manifest,
)
from task_formats import UsageError

FORMAT = "a test, version 1"


def write_folder(folder: Path) -> Manifest:
    """Two files and their manifest."""
    contents = {"a": b"first", "inner/b": b""}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    records = {name: record_file(folder / name) for name in contents}
    manifest = Manifest(FORMAT, records, {"rows": 2, "best": float("-inf")})
    write_manifest(folder / "manifest.json", manifest)
    return manifest


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path)
    assert manifest.files["a"] == FileRecord(5, hashlib.sha256(b"first").hexdigest())
    assert read_manifest(tmp_path / "manifest.json", FORMAT) == manifest
    verify_files(tmp_path, manifest)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"firs", "4 bytes and was written with 5"),
        (b"First", "SHA-256 differs"),
        (None, "No such file"),
    ],
)
def test_a_damaged_file_is_reported(tmp_path: Path, content: bytes | None, what: str) -> None:
    manifest = write_folder(tmp_path)
    if content is None:
        (tmp_path / "a").unlink()
    else:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(UsageError, match=what) as caught:
        verify_files(tmp_path, manifest)
    assert caught.value.where == str(tmp_path / "a")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "a").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="Links are not followed"):
        verify_file(tmp_path / "a", manifest.files["a"])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_a_name_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="inside this folder"):
        verify_files(tmp_path, Manifest(FORMAT, {name: FileRecord(0, "")}))


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": {"a": 1}},
        {"files": {"a": {"size": 5}}},
        {"files": {"a": {"size": "5", "sha256": "0"}}},
        {"files": {"a": {"size": True, "sha256": "0"}}},
        {"files": {"a": {"size": 5, "sha256": "0", "more": 1}}},
        {"metadata": None},
    ],
)
def test_a_damaged_manifest_is_reported(tmp_path: Path, changes: dict[str, object]) -> None:
    manifest = write_folder(tmp_path)
    content = {**manifest._asdict(), **changes}
    (tmp_path / "manifest.json").write_bytes(json_files.encode(content, exact=True))
    with pytest.raises(UsageError, match="damaged: it does not list files"):
        read_manifest(tmp_path / "manifest.json", FORMAT)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": [1]}'])
def test_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match="the format is not 'a test, version 1'"):
        read_manifest(tmp_path / "manifest.json", FORMAT)


def test_a_cut_manifest_is_reported(tmp_path: Path) -> None:
    write_folder(tmp_path)
    os.truncate(tmp_path / "manifest.json", 50)
    with pytest.raises(UsageError, match="not valid JSON"):
        read_manifest(tmp_path / "manifest.json", FORMAT)
