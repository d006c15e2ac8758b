"""Byte streams of files, and their lines as text of limited length."""

import codecs
import gzip
import io
import lzma
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from finetune.data.rows import MAX_ROW_BYTES
from finetune.storage.files import open_regular_file, undecodable
from task_formats import RowError, UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")


class Line(NamedTuple):
    """One line of a file, its line end included; `error` says why it cannot be used."""

    number: int
    text: str
    error: RowError | None


@contextmanager
def open_stream(path: Path | str) -> Iterator[BinaryIO]:
    """Opens a file, decompressed if its name ends in .gz or .xz; `-` is standard input.

    Raises:
        UsageError: There is no such regular file, or reading it fails inside the block.
    """
    try:
        if str(path) == "-":
            if sys.stdin is None:
                cure = "Name a file, or redirect one to it."
                raise UsageError("standard input is closed", cure=cure)
            yield sys.stdin.buffer
        else:
            with open_regular_file(path, follow_links=True) as stream:
                yield _decompress(stream, Path(path).suffix.lower())
    except FileNotFoundError:
        cure = describe_folder(Path(path).parent)
        raise UsageError("no such file", where=str(path), cure=cure) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError(what, where=str(path), cure="Check that the file is complete.") from error


def _decompress(stream: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    return cast(BinaryIO, lzma.LZMAFile(stream)) if suffix == ".xz" else stream


def peek(stream: BinaryIO, size: int) -> bytes:
    """Returns the first bytes of a stream, which are then read again; fewer from a pipe."""
    if stream.seekable():
        position = stream.tell()
        start = stream.read(size)
        stream.seek(position)
        return start
    look = getattr(stream, "peek", None)
    return look(size)[:size] if look else b""


def decode_utf16(stream: BinaryIO, file: str) -> BinaryIO:
    """Returns the stream as UTF-8 if it begins with the byte order mark of UTF-16.

    Raises:
        UsageError: It is not UTF-16.
    """
    if peek(stream, 2) not in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return stream
    try:
        return io.BytesIO(stream.read().decode("utf-16").encode())
    except UnicodeDecodeError as error:
        what = f"byte {error.start + 1} is not UTF-16, as which the file begins"
        raise UsageError(what, where=file, cure="Save the file as UTF-8.") from None


def describe_folder(folder: Path) -> str:
    """Says what is in a folder, for messages; hidden files are left out."""
    if not folder.is_dir():
        return f"There is no folder {str(folder)!r} either."
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in visible]
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"In {str(folder)!r} there is {listed or 'nothing'}."


def read_lines(stream: BinaryIO, file: str) -> Iterator[Line]:
    r"""Yields the lines of a UTF-8 stream with or without a byte order mark.

    Only `\n` ends a line: U+2028 and similar characters are text. A line with an error keeps its
    text, with undecodable bytes replaced.

    Raises:
        UsageError: A line is longer than MAX_ROW_BYTES.
    """
    lines = iter(lambda: stream.readline(MAX_ROW_BYTES + 1), b"")
    for number, raw in enumerate(lines, start=1):
        if len(raw) > MAX_ROW_BYTES:
            raise row_too_long(f"{file}, line {number}")
        content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        fault = None
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            text, found = content.decode(errors="replace"), undecodable(error, file, number)
            fault = RowError(found.what, where=found.where, cure=found.cure)
        if "\0" in text and not fault:
            where = f"{file}, line {number}, byte {content.index(0) + 1}"
            fault = RowError("a NUL byte", where=where, cure="Remove it, or save as UTF-8.")
        yield Line(number, text, fault)


def row_too_long(where: str) -> UsageError:
    """The error of a row that is longer than MAX_ROW_BYTES."""
    return UsageError(
        f"a row of more than {MAX_ROW_BYTES:,} bytes",
        where=where,
        cure="Check that it is the right file, has line ends, and that every quote is closed.",
    )


def first_line(error: Exception) -> str:
    """The first line of a library's message, or the error's type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def find_invalid_character(value: Any) -> str | None:
    """Returns a NUL or a lone surrogate in any text of a nested value, or None."""
    if isinstance(value, str):
        # Two quick searches: almost no text has one.
        surrogate = None if value.isascii() else _SURROGATE.search(value)
        return "\0" if "\0" in value else surrogate and surrogate.group()
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next(filter(None, map(find_invalid_character, value)), None)
    return None
