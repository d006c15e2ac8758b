"""The lines of a byte stream as text, bounded in length, with what is wrong in them."""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from finetune.data.rows import MAX_ROW_BYTES
from finetune.storage.files import open_input_file
from task_formats import RowError, UsageError

_MARK = b"\xef\xbb\xbf"
_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip"}


class Line(NamedTuple):
    """One physical line, its end included; `fault` says why it cannot be used."""

    number: int
    text: str
    fault: RowError | None


@contextmanager
def open_stream(path: Path | str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it ends in .gz; `-` is standard input.

    Raises UsageError where there is no such plain file, or where reading it fails on the way.
    """
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
        else:
            with open_input_file(path) as stream:
                packed = str(path).lower().endswith(".gz")
                yield cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if packed else stream
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), cure=_neighbours(Path(path))) from None
    except IsADirectoryError:
        raise UsageError("is a folder, not a file", where=str(path)) from None
    except (OSError, EOFError, zlib.error) as error:
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise UsageError(what, where=str(path), cure="Is the file whole?") from error


def _neighbours(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {str(parent)!r} either."
    names = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"In {str(parent)!r} there is {listed or 'nothing'}."


def read_lines(stream: BinaryIO, file: str) -> Iterator[Line]:
    r"""The lines of a UTF-8 stream with or without a byte order mark.

    Only `\n` ends a line, so U+2028 and its like stay text. A faulty line still has its text,
    unreadable bytes replaced. Raises UsageError at a line longer than MAX_ROW_BYTES.
    """
    number = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(raw) > MAX_ROW_BYTES:
            raise too_long(f"{file}, line {number}")
        if number == 1 and raw.startswith(_MARK):
            raw = raw[len(_MARK) :]
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield Line(number, raw.decode(errors="replace"), _undecodable(error, file, number))
            continue
        if "\0" in text:
            yield Line(number, text, _nul(raw, file, number))
        else:
            yield Line(number, text, None)


def too_long(where: str) -> UsageError:
    """The fault of a row that passes MAX_ROW_BYTES."""
    return UsageError(
        f"a row of more than {MAX_ROW_BYTES:,} bytes",
        where=where,
        cure="Is it the right file, with line ends and with every quote closed?",
    )


def _undecodable(error: UnicodeDecodeError, file: str, number: int) -> RowError:
    raw, at = error.object, error.start
    guess = _OTHER_ENCODINGS.get(raw[:2], "") if number == 1 else ""
    return RowError(
        f"byte 0x{raw[at]:02x} is not UTF-8" + (f"; this looks like {guess}" if guess else ""),
        where=f"{file}, line {number}, byte {at + 1}",
        cure="Unpack it, or name it .gz." if guess == "gzip" else "Save the file as UTF-8.",
    )


def _nul(raw: bytes, file: str, number: int) -> RowError:
    return RowError(
        "a NUL byte",
        where=f"{file}, line {number}, byte {raw.index(0) + 1}",
        cure="Is it a text file in UTF-8? Remove the byte, or save the file as UTF-8.",
    )
