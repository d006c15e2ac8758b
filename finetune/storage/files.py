"""Files that are whole or absent: atomic writes, hashes, room on the disk and safe names."""

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
"""Bytes read or written at once: few calls, and little memory however large the file."""

_CURES = {
    errno.ENOSPC: "Free some space, or choose a folder on another disk.",
    errno.EDQUOT: "Your quota is used up: free some space, or choose a folder on another disk.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f), or choose another disk.",
    errno.EROFS: "The disk is mounted read-only: choose another folder.",
    errno.EACCES: "Change the permissions, or choose another folder.",
    errno.EPERM: "Change the permissions, or choose another folder.",
    errno.ELOOP: "Links are not followed here: put the file itself in its place.",
    errno.ENOENT: "Check the path.",
    errno.EEXIST: "Check the path: a part of it is a file.",
    errno.ENOTDIR: "Check the path: a part of it is a file.",
}

_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip"}
"""Encodings that the first two bytes of a file give away."""


@contextmanager
def explain_os_errors(path: Path | str) -> Iterator[None]:
    """Turns a system error of the block into a UsageError with the file, the reason and a cure."""
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers are written in Rust, which reports these errors as text.
        in_text = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError):
            number, filename = error.errno or 0, error.filename
            reason = error.strerror or str(error)
        elif in_text and not isinstance(error, UsageError):
            number, filename = int(in_text[1]), None
            reason = os.strerror(number)
        else:
            raise
        raise UsageError(
            reason,
            where=os.fsdecode(filename) if filename is not None else str(path),
            cure=_CURES.get(number, "Check the disk, or choose another folder."),
        ) from error


@contextmanager
def open_atomically(path: Path | str) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` at the end of the block, on the disk by then.

    After an error or a kill the old file is untouched. UsageError where it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                yield file
                flush(file)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        flush_folder(path.parent)


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Replace the file by `content`, text as UTF-8; a reader sees the old one or the new one."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """A new folder to fill that takes the place of `path` at the end of the block.

    After an error the old folder is untouched; after a kill `finish_replacement` puts things right.
    """
    path = Path(path)
    partial, old = _beside(path)
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
    """Finish, or undo, what a kill inside `replace_folder` left beside `path`."""
    partial, old = _beside(path)
    with explain_os_errors(path):
        if not os.path.lexists(path) and os.path.lexists(old):
            # The old one steps aside only when the new one is whole and on the disk.
            os.rename(partial if os.path.lexists(partial) else old, path)
        remove(partial)
        remove(old)


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".partial"), path.with_name(path.name + ".old")


def remove(path: Path) -> None:
    """Delete a file, a link (never what it leads to) or a folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(file: BinaryIO) -> None:
    """Wait until the file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Wait until the names in the folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _flush_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            with open_regular_file(Path(folder, name)) as file:
                os.fsync(file.fileno())
        flush_folder(Path(folder))


def open_regular_file(path: Path | str, flags: int = os.O_RDONLY) -> FileIO:
    """Open a file that is neither link, folder, pipe nor device; `flags` as for `os.open`.

    OSError where that fails; UsageError where it is no plain file. Unbuffered.
    """
    return _open_plain(path, flags | os.O_NOFOLLOW, "Remove it.")


def open_input_file(path: Path | str) -> BinaryIO:
    """A file that a user has named, to read: a plain one, or a link to one. Buffered.

    OSError where that fails; UsageError where it is a pipe or a device, which may never end.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    cure = "Copy what it gives into a file, and name that; gptft predict also reads -, its input."
    return BufferedReader(_open_plain(path, os.O_RDONLY, cure))


def _open_plain(path: Path | str, flags: int, cure: str) -> FileIO:
    # Without O_NONBLOCK a named pipe from a stranger would hold the run for ever.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError("not a plain file", where=str(path), cure=cure)
    writable = flags & (os.O_WRONLY | os.O_RDWR)
    return FileIO(descriptor, "r+b" if writable else "rb")


def read_regular_file(path: Path | str, limit: int = 2**26) -> bytes:
    """All bytes of a plain file; UsageError where it has more than `limit` of them."""
    with explain_os_errors(path), open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UsageError(f"{size:,} bytes, and at most {limit:,} are read", where=str(path))
        blocks = iter(lambda: file.read(BLOCK), b"")
        return b"".join(blocks)


def decode_utf8(content: bytes, where: str, line: int = 1) -> str:
    """Decodes UTF-8 text and drops a byte order mark at its beginning.

    Args:
        content: A whole file, or a part of it that begins at a line.
        where: The file, as messages name it.
        line: Number of the first line of `content`, from 1.

    Raises:
        UsageError: Some byte is not UTF-8; it names the line and the byte in it, both from 1.
    """
    try:
        return content.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise undecodable(error, where, line) from None


def undecodable(error: UnicodeDecodeError, where: str, line: int = 1) -> UsageError:
    """The UsageError for a decoding error in text that begins at `line`; see `decode_utf8`."""
    content, start = error.object, error.start
    guess = _OTHER_ENCODINGS.get(content[:2], "") if line == 1 else ""
    number = line + content.count(b"\n", 0, start)
    column = start - content.rfind(b"\n", 0, start)
    return UsageError(
        f"byte 0x{content[start]:02x} is not UTF-8"
        + (f"; this looks like {guess}" if guess else ""),
        where=f"{where}, line {number}, byte {column}",
        cure="Unpack the file." if guess == "gzip" else "Save the file as UTF-8.",
    )


def hash_file(path: Path | str) -> str:
    """SHA-256 of a plain file, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with explain_os_errors(path), open_regular_file(path) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def check_disk_space(folder: Path | str, size: int) -> None:
    """UsageError unless the disk of `folder`, or of its nearest parent, has `size` bytes free."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    with explain_os_errors(folder):
        free = shutil.disk_usage(place).free
    if free < size:
        raise UsageError(
            f"{size:,} bytes are needed and {free:,} are free",
            where=str(folder),
            cure=_CURES[errno.ENOSPC],
        )


def safe_join(folder: Path | str, name: str) -> Path:
    """The path of `name` in `folder`; UsageError for any name that leads out of it.

    Refused: absolute paths, `..`, the folder itself, links to somewhere else.
    """
    relative, where = Path(name), str(folder)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise UsageError(f"{name!r} is no name inside this folder", where=where)
    path = Path(folder) / relative
    try:
        leads_out = not path.resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError):  # a circle of links
        leads_out = True
    if leads_out:
        raise UsageError(f"{name!r} is a link out of this folder", where=where, cure="Remove it.")
    return path
