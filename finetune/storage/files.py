"""Atomic writes, hashes, UTF-8 and safe names."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from task_formats import UsageError

_CURES = {
    errno.ENOSPC: "Free some space, or choose a folder on another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or choose a folder on another disk.",
    errno.EROFS: "The disk is mounted read-only: choose another folder.",
    errno.EACCES: "Check the permissions, or choose another folder.",
    errno.ELOOP: "Links are not followed here: replace the link by the file.",
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "Check the path: a part of it is a file.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
}
_ENCODING_CURES = {
    b"\xff\xfe": "Save the file as UTF-8: this looks like UTF-16.",
    b"\xfe\xff": "Save the file as UTF-8: this looks like UTF-16.",
    b"\x1f\x8b": "Unpack the file: this looks like gzip.",
}
"""By the first two bytes of a text."""


def cache_folder() -> Path:
    """Returns the user's cache for gptft: $GPTFT_CACHE, or a folder in the user's cache.

    Raises:
        UsageError: The user has no home folder, and no variable names a cache.
    """
    if folder := os.environ.get("GPTFT_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptft"
    except RuntimeError:
        what, cure = "there is no home folder for the cache", "Set GPTFT_CACHE to a folder."
        raise UsageError(what, cure=cure) from None


@contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turns a system error of the block into a UsageError with the file, the reason and a cure."""
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers are written in Rust, which reports these errors as text.
        in_text = re.search(r"\(os error (\d+)\)", str(error))
        number = int(in_text[1]) if in_text else getattr(error, "errno", None)
        if number is None:
            raise
        raise UsageError(
            os.strerror(number),
            where=str(getattr(error, "filename", None) or path),
            cure=_CURES.get(number, "Check free space and permissions, or choose another folder."),
        ) from error


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Replaces a file in one step: after an error or a kill it is the old one or the new one.

    Missing folders are created; text is encoded as UTF-8.

    Raises:
        UsageError: The disk is full, read-only or forbidden.
    """
    path = Path(path)
    partial = name_partial(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)


def name_partial(path: Path) -> Path:
    """A name beside a file that nobody can guess, for its content until it is complete.

    Open it with mode "x", which never opens a file or link that is there already.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """Gives a new folder to fill, which replaces `path` at the end of the block.

    After an error the old folder is unchanged. After a kill call `finish_replacement`.
    """
    path = Path(path)
    partial, old = _temporary_paths(path)
    with explain_os_errors(path):
        remove(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            _finish_tree(partial)
        except BaseException:
            remove(partial)
            raise
        if os.path.lexists(path):
            remove(old)
            os.rename(path, old)
        os.rename(partial, path)
        flush_folder(path.parent)
        remove(old)


def remove_folder(path: Path) -> None:
    """Deletes a folder, and what a `replace_folder` that was killed left of it."""
    for folder in (path, *_temporary_paths(path)):
        remove(folder)


def finish_replacement(path: Path) -> None:
    """Completes or undoes a `replace_folder` that was killed."""
    partial, old = _temporary_paths(path)
    if not os.path.lexists(path) and os.path.lexists(old):
        # The old folder is renamed only when the new one is complete and on the disk.
        os.rename(partial if os.path.lexists(partial) else old, path)
    remove(partial)
    remove(old)


def _temporary_paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".partial"), path.with_name(path.name + ".old")


def remove(path: Path) -> None:
    """Deletes a file, a link (not its target) or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_space(folder: Path) -> int:
    """Returns the bytes that this user may still write to the disk of a folder."""
    with explain_os_errors(folder):
        return shutil.disk_usage(folder).free


def flush_folder(path: Path) -> None:
    """Waits until the names in the folder are on the disk, where the system can do that."""
    # Windows cannot open folders, and some network file systems cannot flush them.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _finish_tree(path: Path) -> None:
    """Flushes all files, and lets those read them whom the umask of the user allows it."""
    mode = "r+b" if os.name == "nt" else "rb"  # Windows flushes only what it may write.
    permissions = path.stat().st_mode & 0o666
    for folder, _, names in os.walk(path):
        for name in names:
            os.chmod(Path(folder, name), permissions)  # safetensors and others give 0600.
            with open(Path(folder, name), mode) as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    # The next large file reuses this memory; to find fresh memory is slower.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        flush_folder(Path(folder))


def open_regular_file(
    path: Path | str, mode: str = "rb", *, buffering: int = -1, follow_links: bool = False
) -> BinaryIO:
    """Opens a file which is no folder, pipe or device, and by default no link.

    Raises:
        OSError: It cannot be opened, or is a folder.
        UsageError: It is a pipe or a device.
    """

    def opener(name: str, flags: int) -> int:
        # Without O_NONBLOCK opening a named pipe would wait forever.
        flags |= getattr(os, "O_NONBLOCK", 0)
        if not follow_links:
            flags |= getattr(os, "O_NOFOLLOW", 0)
            if not hasattr(os, "O_NOFOLLOW") and os.path.islink(name):  # Windows.
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        return os.open(name, flags, 0o666)

    file = open(path, mode, buffering, opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        cure = "Copy its content to a file, and use that."
        raise UsageError("not a regular file", where=str(path), cure=cure)
    return cast(BinaryIO, file)


def read_regular_file(path: Path | str) -> bytes:
    """Returns all bytes of a file that is no link, pipe or device."""
    with explain_os_errors(path), open_regular_file(path) as file:
        return file.read()


def decode_utf8(content: bytes, where: str) -> str:
    """Decodes the UTF-8 text of a file and drops a byte order mark at its beginning.

    Raises:
        UsageError: A byte is not UTF-8; the message names its line and its position in it, from 1.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise undecodable(error, where) from None


def undecodable(error: UnicodeDecodeError, where: str, line: int = 1) -> UsageError:
    """Returns what `decode_utf8` raises, for text that begins at `line`."""
    content, start = error.object, error.start
    number = line + content.count(b"\n", 0, start)
    position = start - content.rfind(b"\n", 0, start)
    return UsageError(
        f"byte 0x{content[start]:02x} is not UTF-8",
        where=f"{where}, line {number}, byte {position}",
        cure=_ENCODING_CURES.get(content[:2]) or _encoding_cure(content[start : start + 1]),
    )


def _encoding_cure(byte: bytes) -> str:
    letter = byte.decode("cp1252", "replace")
    if letter == "\ufffd":
        return "Save the file as UTF-8."
    what = f"In Windows-1252, as Excel saves CSV, it is {letter!r}."
    return f"{what} Save the file as UTF-8, or read rows with --encoding cp1252."


def hash_file(path: Path | str) -> str:
    """Returns the SHA-256 of a regular file, in hexadecimal."""
    digest = hashlib.sha256()
    with explain_os_errors(path), open_regular_file(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def safe_join(folder: Path | str, name: str) -> Path:
    """Returns the path of `name` in a folder.

    Raises:
        UsageError: The name leads out of the folder: by "..", as an absolute path or by a link.
    """
    path = Path(folder, name)
    try:
        inside = Path(folder).resolve() in path.resolve().parents
    except (OSError, RuntimeError, ValueError):  # a circle of links, or a NUL byte
        inside = False
    if not inside:
        raise UsageError(f"{name!r} is not inside this folder", where=str(folder))
    return path
