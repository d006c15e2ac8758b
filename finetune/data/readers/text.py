"""Byte streams of files, and their lines as text of limited length."""

import gzip
import lzma
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from finetune.data.rows import MAX_ROW_BYTES
from finetune.storage.files import open_input_file, undecodable
from task_formats import RowError, UsageError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
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
            yield sys.stdin.buffer
        else:
            with open_input_file(path) as stream:
                yield _decompress(stream, Path(path).suffix.lower())
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), cure=_neighbours(Path(path))) from None
    except IsADirectoryError:
        raise UsageError("is a folder, not a file", where=str(path)) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError(what, where=str(path), cure="Check that the file is complete.") from error


def _decompress(stream: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    return cast(BinaryIO, lzma.LZMAFile(stream)) if suffix == ".xz" else stream


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {str(path.parent)!r} either."
    return describe_folder(path.parent, sorted(path.parent.iterdir()))


def describe_folder(folder: Path, paths: Sequence[Path]) -> str:
    """Says what is in a folder, for messages; hidden files are left out."""
    visible = [path for path in paths if not path.name.startswith(".")]
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
    number = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(raw) > MAX_ROW_BYTES:
            raise row_too_long(f"{file}, line {number}")
        if number == 1 and raw.startswith(_BYTE_ORDER_MARK):
            raw = raw[len(_BYTE_ORDER_MARK) :]
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            found = undecodable(error, file, number)
            fault = RowError(found.what, where=found.where, cure=found.cure)
            yield Line(number, raw.decode(errors="replace"), fault)
            continue
        yield Line(number, text, _nul_byte(raw, file, number) if "\0" in text else None)


def row_too_long(where: str) -> UsageError:
    """The error of a row that is longer than MAX_ROW_BYTES."""
    return UsageError(
        f"a row of more than {MAX_ROW_BYTES:,} bytes",
        where=where,
        cure="Check that it is the right file, has line ends, and that every quote is closed.",
    )


def _nul_byte(raw: bytes, file: str, number: int) -> RowError:
    return RowError(
        "a NUL byte",
        where=f"{file}, line {number}, byte {raw.index(0) + 1}",
        cure="Remove the byte, or save the file as UTF-8.",
    )


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
