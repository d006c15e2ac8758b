"""Rows of JSON lines and of JSON lists, with the bounds that hostile files need."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.text import read_lines, too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, RowLocation, Scanned
from task_formats import RowError, UsageError

_CHUNK = 2**20
_BLANK = " \t\n\r"
_BLANKS = re.compile(f"[{_BLANK}]*")


def scan_json_lines(stream: BinaryIO, file: str) -> Iterator[Scanned]:
    """One object a line; empty lines are no rows."""
    for number, text, fault in read_lines(stream, file):
        if fault or text.strip(_BLANK):
            place = RowLocation(file, number)
            yield place, fault or _parse(text, place)


def _parse(text: str, place: RowLocation) -> dict[str, Any] | RowError:
    try:
        return _checked(json.loads(text), text, place)
    except RecursionError:
        return RowError("nested too deeply", where=str(place))
    except json.JSONDecodeError as error:
        where = f"{place}, column {error.pos + 1}"
        return RowError(f"not JSON: {error.msg}", where=where, cure="One object a line.")
    except ValueError as error:
        return RowError(f"not JSON: {error}", where=str(place))


def _checked(row: Any, text: str, place: RowLocation) -> dict[str, Any] | RowError:
    """The row, or what is wrong with it although it is JSON."""
    if not isinstance(row, dict):
        what = f"a {type(row).__name__}, not an object"
        return RowError(what, where=str(place), cure='Write {"column": value, ...}.')
    if len(row) > MAX_COLUMNS:
        return RowError(f"more than {MAX_COLUMNS:,} columns", where=str(place))
    bad = _unwritable(row) if "\\u" in text else None
    if bad is None:
        return row
    name = "a NUL" if bad == "\0" else "half of a surrogate pair"
    escape = f"\\u{ord(bad):04x}"
    where = f"{place}, column {text.lower().find(escape) + 1}"
    return RowError(f"{escape} is {name}, not text", where=where, cure="Remove the character.")


def _unwritable(value: Any) -> str | None:
    """A NUL or a lone surrogate in any text of a JSON value."""
    if isinstance(value, str):
        return next((c for c in value if c == "\0" or "\ud800" <= c <= "\udfff"), None)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((bad for bad in map(_unwritable, value) if bad is not None), None)
    return None


def scan_json(stream: BinaryIO, file: str) -> Iterator[Scanned]:
    """The objects of one list, read piece by piece; a file that starts with `{` is JSON lines.

    Raises UsageError where the list itself is broken.
    """
    text = _Text(stream, file)
    if text.peek() == "{":
        yield from _json_lines_from(text)
        return
    if text.peek() == "":
        raise UsageError("the file is empty", where=file, cure="It needs a list of objects.")
    text.expect("[")
    while text.peek() != "]":
        place = RowLocation(file, text.line)
        yield place, text.item(place)
        if text.peek() == "]":
            break
        text.expect(",")
    text.expect("]")
    if text.peek():
        raise text.broken("something after the list")


def _json_lines_from(text: "_Text") -> Iterator[Scanned]:
    while text.peek():
        place = RowLocation(text.file, text.line)
        yield place, text.item(place)


class _Text:
    """A stream of JSON seen through a window of bounded size."""

    def __init__(self, stream: BinaryIO, file: str) -> None:
        self.stream, self.file, self.line = stream, file, 1
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes, self._window, self._at, self._ended = 0, "", 0, False

    def peek(self) -> str:
        """The next character that is not blank; nothing at the end."""
        while True:
            start, window = self._at, self._window
            self._at = _BLANKS.match(window, start).end()  # type: ignore[union-attr]
            self.line += window.count("\n", start, self._at)
            if self._at < len(window):
                return window[self._at]
            if not self._fill():
                return ""

    def expect(self, character: str) -> None:
        """Pass one character; UsageError if another one stands there."""
        found = self.peek()
        if found != character:
            raise self.broken(f"{found or 'the end'!r} where {character!r} should stand")
        self._at += 1

    def item(self, place: RowLocation) -> dict[str, Any] | RowError:
        """Pass one object."""
        if self.peek() != "{":
            raise self.broken("an item of the list that is no object")
        decoder = json.JSONDecoder()
        while True:
            try:
                row, end = decoder.raw_decode(self._window, self._at)
                break
            except RecursionError:
                raise self.broken("an object nested too deeply") from None
            except ValueError as error:
                # Either it is broken or its end is not in the window yet.
                if not self._fill():
                    raise self.broken(f"not JSON: {getattr(error, 'msg', error)}") from None
        text, self._at = self._window[self._at : end], end
        self.line += text.count("\n")
        try:
            return _checked(row, text, place)
        except RecursionError:
            return RowError("nested too deeply", where=str(place))

    def _fill(self) -> bool:
        """Let the window reach further; False at the end of the stream."""
        left = len(self._window) - self._at
        if left > MAX_ROW_BYTES:
            raise too_long(f"{self.file}, line {self.line}")
        raw = b"" if self._ended else self.stream.read(_CHUNK + left)
        self._ended = not raw
        try:
            text = self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            before = self._bytes + len(raw) - len(error.object)
            where = f"{self.file}, byte {before + error.start + 1}"
            what = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
            raise UsageError(what, where=where, cure="Save the file as UTF-8.") from None
        self._bytes += len(raw)
        self._window, self._at = self._window[self._at :] + text, 0
        return not self._ended or bool(text)

    def broken(self, what: str) -> UsageError:
        """The fault of the file at this point."""
        return UsageError(
            what,
            where=f"{self.file}, line {self.line}",
            cure="A .json file holds one list of objects; objects alone, one a line, are .jsonl.",
        )
