"""Rows of JSON lines and of JSON lists, read with limited memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.text import find_invalid_character, read_lines, row_too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, LocatedRow, RowLocation
from finetune.storage.files import undecodable
from task_formats import RowError, UsageError

_CHUNK = 2**20
_BLANK = " \t\n\r"
_BLANKS = re.compile(f"[{_BLANK}]*")


def read_json_lines(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields one object per line; empty lines are skipped."""
    for number, text, error in read_lines(stream, file):
        if error or text.strip(_BLANK):
            location = RowLocation(file, number)
            yield location, error or _parse_line(text, location)


def _parse_line(text: str, location: RowLocation) -> dict[str, Any] | RowError:
    try:
        return _check_row(json.loads(text), text, location)
    except RecursionError:
        return RowError("nested too deeply", where=str(location))
    except json.JSONDecodeError as error:
        where = f"{location}, column {error.pos + 1}"
        return RowError(f"not JSON: {error.msg}", where=where, cure="Write one object per line.")
    except ValueError as error:
        return RowError(f"not JSON: {error}", where=str(location))


def _check_row(row: Any, text: str, location: RowLocation) -> dict[str, Any] | RowError:
    """Returns the row, or why this JSON value is not one."""
    if not isinstance(row, dict):
        what = f"a {type(row).__name__}, not an object"
        return RowError(what, where=str(location), cure='Write {"column": value, ...}.')
    if len(row) > MAX_COLUMNS:
        return RowError(f"more than {MAX_COLUMNS:,} columns", where=str(location))
    bad = find_invalid_character(row) if "\\u" in text else None
    if bad is None:
        return row
    name = "a NUL" if bad == "\0" else "half of a surrogate pair"
    escape = f"\\u{ord(bad):04x}"
    where = f"{location}, column {text.lower().find(escape) + 1}"
    return RowError(f"{escape} is {name}, not text", where=where, cure="Remove the character.")


def read_json(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields the objects of one list, read in chunks; without a list, objects one after another.

    Raises:
        UsageError: The list itself is broken.
    """
    parser = _JsonParser(stream, file)
    first = parser.peek()
    if first == "":
        raise UsageError("the file is empty", where=file, cure="It needs a list of objects.")
    if first == "{":
        while parser.peek():
            yield parser.read_object()
        return
    parser.expect("[")
    while parser.peek() != "]":
        yield parser.read_object()
        if parser.peek() == "]":
            break
        parser.expect(",")
    parser.expect("]")
    if parser.peek():
        raise parser.error("something after the list")


class _JsonParser:
    """Parses a stream of JSON of which only a window of limited size is in memory."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self._stream, self._file, self._line = stream, file, 1
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes, self._window, self._position, self._ended = 0, "", 0, False

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            start, window = self._position, self._window
            self._position = _BLANKS.match(window, start).end()  # type: ignore[union-attr]
            self._line += window.count("\n", start, self._position)
            if self._position < len(window):
                return window[self._position]
            if not self._read_more():
                return ""

    def expect(self, character: str) -> None:
        """Consumes one character; UsageError if it is another one."""
        found = self.peek()
        if found != character:
            raise self.error(f"{found or 'the end'!r} instead of {character!r}")
        self._position += 1

    def read_object(self) -> LocatedRow:
        """Consumes one object. UsageError if it is broken."""
        if self.peek() != "{":
            raise self.error("an item of the list that is no object")
        location, decoder = RowLocation(self._file, self._line), json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self._window, self._position)
                text = self._window[self._position : end]
                row = _check_row(value, text, location)
                break
            except RecursionError:
                raise self.error("an object nested too deeply") from None
            except ValueError as error:
                # Either it is broken or it ends beyond the window.
                if not self._read_more():
                    raise self.error(f"not JSON: {getattr(error, 'msg', error)}") from None
        self._position, self._line = end, self._line + text.count("\n")
        return location, row

    def _read_more(self) -> bool:
        """Extends the window; False at the end of the stream."""
        remaining = len(self._window) - self._position
        if remaining > MAX_ROW_BYTES:
            raise row_too_long(f"{self._file}, line {self._line}")
        raw = b"" if self._ended else self._stream.read(_CHUNK + remaining)
        self._ended = not raw
        try:
            text = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            # Not by line: a list may be all on one.
            position = self._bytes + len(raw) - len(error.object) + error.start + 1
            where, fault = f"{self._file}, byte {position}", undecodable(error, self._file)
            raise UsageError(fault.what, where=where, cure=fault.cure) from None
        self._bytes += len(raw)
        self._window, self._position = self._window[self._position :] + text, 0
        return not self._ended or bool(text)

    def error(self, what: str) -> UsageError:
        """The error of the file at this point."""
        return UsageError(
            what,
            where=f"{self._file}, line {self._line}",
            cure="A .json file holds one list of objects; objects alone, one a line, are .jsonl.",
        )
