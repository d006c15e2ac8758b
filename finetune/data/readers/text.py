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
_BUFFER = 2**16
_NO_DATA = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the data itself", "git lfs pull"),
    (b"<!doctype html", "a web page, not data", "Download the file itself, from its raw link."),
    (b"<html", "a web page, not data", "Download the file itself, from its raw link."),
)
"""How files begin that were downloaded instead of data."""


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


def check_is_data(stream: BinaryIO, file: str) -> None:
    """Raises UsageError for what is downloaded by mistake instead of data."""
    start = peek(stream, 64).lower()
    for beginning, what, cure in _NO_DATA:
        if start.startswith(beginning):
            raise UsageError(what, where=file, cure=cure)


def detect_encoding(stream: BinaryIO) -> str:
    """Returns UTF-16 for a stream that begins with its byte order mark or with ASCII in it."""
    start = peek(stream, 4)
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    is_null = [byte == 0 for byte in start]
    if is_null == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if is_null == [True, False, True, False] else "utf-8"


def as_utf8(stream: BinaryIO, file: str, encoding: str | None = None) -> BinaryIO:
    """Returns a stream in another encoding as UTF-8; None finds out whether it is UTF-16.

    Reading it raises UsageError at a byte that is not of this encoding.
    """
    encoding = codecs.lookup(encoding or detect_encoding(stream)).name
    if encoding in ("utf-8", "utf-8-sig"):
        return stream
    return io.BufferedReader(_Transcoded(stream, file, encoding), _BUFFER)


class _Transcoded(io.RawIOBase):
    """A stream as UTF-8. To seek backwards is to decode from the start again."""

    def __init__(self, stream: BinaryIO, file: str, encoding: str) -> None:
        self._stream, self._file, self._encoding = stream, file, encoding
        self._start = stream.tell() if stream.seekable() else 0
        self._reset()

    def _reset(self) -> None:
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._pending, self._position, self._bytes_read = b"", 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        offset += self._position if whence == io.SEEK_CUR else 0
        if offset < self._position:
            self._stream.seek(self._start)
            self._reset()
        while self._position < offset and self.read(min(offset - self._position, _BUFFER)):
            pass
        return self._position

    def readinto(self, buffer: Any) -> int:
        at_end = False
        while not self._pending and not at_end:
            chunk = self._stream.read(_BUFFER)
            at_end = not chunk
            self._bytes_read += len(chunk)
            try:
                self._pending = self._decoder.decode(chunk, at_end).encode()
            except UnicodeError as error:
                raise self._explain(error) from None
        size = min(len(buffer), len(self._pending))
        buffer[:size], self._pending = self._pending[:size], self._pending[size:]
        self._position += size
        return size

    def _explain(self, error: UnicodeError) -> UsageError:
        place = "a byte"
        if isinstance(error, UnicodeDecodeError):
            place = f"byte {self._bytes_read - len(error.object) + error.start + 1:,}"
        cure = "Save the file as UTF-8, or name its encoding with --encoding (data.encoding)."
        return UsageError(f"{place} is not {self._encoding}", where=self._file, cure=cure)


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
