"""Atomic files and folders, safe names, and messages about disks."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.storage import files
from task_formats import UsageError
from tests.support.disks import make_read_only, names, small_disk


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, "Grüße\n"])
def test_a_write_replaces_the_whole_content(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "new" / "file"
    files.write_atomically(path, "something longer" * 1000)
    files.write_atomically(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file"]
    (tmp_path / "other").write_text("x")
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_write_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    files.write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"


@pytest.mark.parametrize(
    ("error", "raised", "cure"),
    [
        (OSError(errno.EIO, "Input/output error"), UsageError, "Check free space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), UsageError, "Free some"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (ValueError("another"), ValueError, ""),
    ],
)
def test_an_error_keeps_the_old_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
    cure: str,
) -> None:
    def fail(descriptor: int) -> None:
        raise error

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(raised) as caught:
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]
    if isinstance(caught.value, UsageError):
        assert caught.value.where == str(path)
        assert cure in caught.value.cure


def test_a_full_or_read_only_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        files.write_atomically(disk / "file", b"1" * 400_000)
        with pytest.raises(UsageError, match="No space left"):
            files.write_atomically(disk / "file", b"2" * 800_000)
        make_read_only(disk)
        with pytest.raises(UsageError, match="Read-only"):
            files.write_atomically(disk / "file", "x")
        assert (disk / "file").read_bytes() == b"1" * 400_000
        assert names(disk) == ["file"]


def fill(folder: Path, text: str) -> None:
    with files.replace_folder(folder) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path / "model", "old")
    (tmp_path / "model" / "stale").write_text("x")
    fill(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["inner"]
    assert (tmp_path / "model" / "inner" / "file").read_text() == "new"


def test_an_error_while_filling_keeps_the_old_folder(tmp_path: Path) -> None:
    fill(tmp_path / "model", "old")
    with pytest.raises(ZeroDivisionError), files.replace_folder(tmp_path / "model") as partial:
        (partial / "file").write_text(str(1 / 0))
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "inner" / "file").read_text() == "old"


@pytest.mark.parametrize("content", [b"", b"x", bytes(2**20), b"x" * (2**21 + 3)])
def test_the_hash_is_that_of_hashlib(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert files.hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    assert files.read_regular_file(tmp_path / "file") == content


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name, what in [
        ("link", "Links are not followed"),
        ("pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (".", "Is a directory"),
        ("missing", "No such file"),
    ]:
        with pytest.raises(UsageError, match=what):
            files.read_regular_file(tmp_path / name)
    with files.open_regular_file(tmp_path / "link", follow_links=True) as file:
        assert file.read() == b"x"


@given(st.text())
def test_utf8_text_comes_back(text: str) -> None:
    content = text.encode("utf-8", "replace")
    assert files.decode_utf8(b"\xef\xbb\xbf" + content, "file") == content.decode()


@pytest.mark.parametrize(
    ("content", "place", "cure"),
    [
        (b"\x81", "line 1, byte 1", "Save the file as UTF-8."),
        (b"a\n\xc3\xbc\x81", "line 2, byte 3", "Save the file as UTF-8."),
        (b"\x1f\x8b\x08", "line 1, byte 2", "Unpack the file: this looks like gzip."),
    ],
)
def test_undecodable_text_is_reported(content: bytes, place: str, cure: str) -> None:
    with pytest.raises(UsageError, match="is not UTF-8") as caught:
        files.decode_utf8(content, "notes.txt")
    assert caught.value.where == f"notes.txt, {place}"
    assert caught.value.cure == cure


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../../x", "a/..", "/etc/passwd", "x\0y", "out/x", "loop"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="this folder"):
        files.safe_join(folder, name)


@pytest.mark.parametrize("name", ["x", "a/b", "...", "in/x", "ü"])
def test_names_inside_are_joined(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "in").symlink_to("a")
    assert files.safe_join(tmp_path, name) == tmp_path / name


@given(st.text("./\\x\0~é ", max_size=12))
def test_no_name_leads_out(name: str) -> None:
    try:
        path = files.safe_join("/base/run", name)
    except UsageError:
        return
    assert os.path.normpath(path).startswith("/base/run/")
