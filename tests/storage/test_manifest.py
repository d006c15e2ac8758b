"""Records of files: what was written is verified, and every damage is found."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.storage import json_files
from finetune.storage.manifest import (
    FileRecord,
    Manifest,
    read_manifest,
    record_file,
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
    ("damage", "what"),
    [
        (lambda path: path.write_bytes(b"firs"), "damaged"),
        (lambda path: path.write_bytes(b"First"), "damaged"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.rename(f"{path}x") and path.symlink_to(f"{path}x"), "Links are not"),
    ],
    ids=["cut", "changed", "missing", "link"],
)
def test_a_damaged_file_is_reported(
    tmp_path: Path, damage: Callable[[Path], object], what: str
) -> None:
    manifest = write_folder(tmp_path)
    damage(tmp_path / "a")
    with pytest.raises(UsageError, match=what) as caught:
        verify_files(tmp_path, manifest)
    assert caught.value.where == str(tmp_path / "a")


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
