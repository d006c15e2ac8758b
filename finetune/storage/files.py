"""Atomic writes, hashes, UTF-8, disk space and safe names."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO

from task_formats import UsageError

BLOCK = 8 * 2**20
"""Bytes that are read at once."""

_CURES = {
    errno.ENOSPC: "Free some space, or choose a folder on another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or choose a folder on another disk.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose another disk.",
    errno.EROFS: "The disk is mounted read-only: choose another folder.",
    errno.EACCES: "Check the permissions, or choose another folder.",
    errno.EPERM: "Check the permissions, or choose another folder.",
    errno.ELOOP: "Links are not followed here: replace the link by the file.",
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "Check the path: a part of it is a file.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
}
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip"}


@contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turns a system error of the block into a UsageError with the file, the reason and a cure."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        # safetensors and tokenizers are written in Rust, which reports these errors as text.
        in_text = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError):
            number, reason, filename = error.errno or 0, error.strerror, error.filename
        elif in_text:
            number, reason, filename = int(in_text[1]), os.strerror(int(in_text[1])), None
        else:
            raise
        raise UsageError(
            reason or str(error),
            where=str(path) if filename is None else os.fsdecode(filename),
            cure=_CURES.get(number, "Check the disk, or choose another folder."),
        ) from error


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Replaces a file in one step: after an error or a kill it is the old one or the new one.

    Args:
        path: The file; missing folders are created.
        content: Bytes, or text to encode as UTF-8.

    Raises:
        UsageError: The disk is full, read-only or forbidden.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        flush_folder(path.parent)


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
            _flush_tree(partial)
        except BaseException:
            with suppress(OSError):
                remove(partial)
            raise
        if os.path.lexists(path):
            remove(old)
            os.rename(path, old)
        os.rename(partial, path)
        flush_folder(path.parent)
        remove(old)


def finish_replacement(path: Path) -> None:
    """Completes or undoes a `replace_folder` that was killed."""
    partial, old = _temporary_paths(path)
    with explain_os_errors(path):
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


def flush_folder(path: Path) -> None:
    """Waits until the names in the folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    # Some network file systems cannot do that for folders.
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def _flush_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            with open_regular_file(Path(folder, name)) as file:
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):
                    # The next large file reuses this memory; to find fresh memory is slower.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        flush_folder(Path(folder))


def open_regular_file(
    path: Path | str, flags: int = os.O_RDONLY, *, follow_links: bool = False
) -> FileIO:
    """Opens a file, unbuffered, which is no folder, pipe or device, and by default no link.

    Raises:
        OSError: It cannot be opened.
        UsageError: It is not a regular file.
    """
    flags |= 0 if follow_links else os.O_NOFOLLOW
    # Without O_NONBLOCK opening a named pipe would wait forever.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(
            "not a regular file", where=str(path), cure="Copy its content to a file, and use that."
        )
    return FileIO(descriptor, "r+b" if flags & (os.O_WRONLY | os.O_RDWR) else "rb")


def open_input_file(path: Path | str) -> BinaryIO:
    """Opens a file that the user has named, or a link to it, for buffered reading.

    Raises:
        OSError: It cannot be opened, or is a folder.
        UsageError: It is a pipe or a device.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return BufferedReader(open_regular_file(path, follow_links=True))


def read_regular_file(path: Path | str, limit: int = 2**26) -> bytes:
    """Returns all bytes of a regular file. Raises UsageError where it has more than `limit`."""
    with explain_os_errors(path), open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            what = f"the file is too large: {size:,} bytes, at most {limit:,} are read"
            raise UsageError(what, where=str(path))
        return file.readall()


def decode_utf8(content: bytes, where: str, line: int = 1) -> str:
    """Decodes UTF-8 text and drops a byte order mark at its beginning.

    Args:
        content: A whole file, or a part of it that begins at a line.
        where: The file, as messages name it.
        line: Number of the first line of `content`, from 1.

    Raises:
        UsageError: A byte is not UTF-8; the message names its line and its position in it, from 1.
    """
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise undecodable(error, where, line) from None


def undecodable(
    error: UnicodeDecodeError, where: str, line: int = 1, column: int = 0
) -> UsageError:
    """Returns what `decode_utf8` raises, for text that follows `column` bytes of `line`."""
    content, start = error.object, error.start
    guess = _OTHER_ENCODINGS.get(content[:2]) if (line, column) == (1, 0) else None
    number = line + content.count(b"\n", 0, start)
    newline = content.rfind(b"\n", 0, start)
    column = start - newline if newline >= 0 else column + start + 1
    looks_like = f"; this looks like {guess}" if guess else ""
    return UsageError(
        f"byte 0x{content[start]:02x} is not UTF-8{looks_like}",
        where=f"{where}, line {number}, byte {column}",
        cure="Unpack the file." if guess == "gzip" else "Save the file as UTF-8.",
    )


def hash_file(path: Path | str) -> str:
    """Returns the SHA-256 of a regular file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with explain_os_errors(path), open_regular_file(path) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def check_disk_space(folder: Path | str, size: int) -> None:
    """Raises UsageError unless the disk of a folder, which may not exist yet, has `size` bytes."""
    existing = Path(folder).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    with explain_os_errors(folder):
        free = shutil.disk_usage(existing).free
    if free < size:
        what = f"{size:,} bytes are needed and {free:,} are free"
        raise UsageError(what, where=str(folder), cure=_CURES[errno.ENOSPC])


def safe_join(folder: Path | str, name: str) -> Path:
    """Returns the path of `name` in a folder.

    Raises:
        UsageError: The name is absolute, contains "..", or leads out of the folder by a link.
    """
    relative, where = Path(name), str(folder)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise UsageError(f"{name!r} is not a name inside this folder", where=where)
    path = Path(folder) / relative
    try:
        leads_out = not path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError):  # a circle of links
        leads_out = True
    if leads_out:
        raise UsageError(f"{name!r} is a link out of this folder", where=where, cure="Remove it.")
    return path
