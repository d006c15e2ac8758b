"""Rows of JSON lines and of JSON lists, read with limited memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.text import find_invalid_character, read_lines, row_too_long
from finetune.data.rows import MAX_ROW_BYTES, LocatedRow, RowLocation
from finetune.storage.files import undecodable
from task_formats import RowError, UsageError

_CHUNK = 2**20

# What comes before the next object, and what ends the file.
_START = re.compile(r"\s*(?:(\[)\s*)?(?=\{)"), re.compile(r"\s*\[\s*\]\s*")
_IN_LIST = re.compile(r"\s*,\s*(?=\{)"), re.compile(r"\s*\]\s*")
_WITHOUT_LIST = re.compile(r"\s*(?=\{)"), re.compile(r"\s*")


def read_json_lines(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields one object per line; empty lines are skipped."""
    for number, text, error in read_lines(stream, file):
        if error or text.strip():
            location = RowLocation(file, number)
            yield location, error or _parse_line(text, location)


def _parse_line(text: str, location: RowLocation) -> dict[str, Any] | RowError:
    try:
        return _check_row(json.loads(text), text, location)
    except json.JSONDecodeError as error:
        where = f"{location}, column {error.pos + 1}"
        return RowError(f"not JSON: {error.msg}", where=where, cure="Write one object per line.")
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON: {error}", where=str(location))


def _check_row(row: Any, text: str, location: RowLocation) -> dict[str, Any] | RowError:
    """Returns the row, or why this JSON value is not one."""
    if not isinstance(row, dict):
        what = f"a {type(row).__name__}, not an object"
        return RowError(what, where=str(location), cure='Write {"column": value, ...}.')
    bad = find_invalid_character(row) if "\\u" in text else None
    if bad is None:
        return row
    name = "a NUL" if bad == "\0" else "half of a surrogate pair"
    what = f"\\u{ord(bad):04x} is {name}, not text"
    return RowError(what, where=str(location), cure="Remove the character.")


def read_json(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields the objects of one list, read in chunks; without a list, objects one after another.

    One object may be a table: pandas' orients columns, index, split and table, or {"data": [...]}.

    Raises:
        UsageError: The list itself is broken.
    """
    text, line, fault = "", 1, "not a list of objects"
    decode, (before, ending) = json.JSONDecoder().raw_decode, _START
    for chunk in _decode(stream, file):
        text, start = text + chunk, 0
        while match := before.match(text, start):
            location = RowLocation(file, line + text.count("\n", start, match.end()))
            try:
                row, end = decode(text, match.end())
            except (ValueError, RecursionError) as error:
                # Either it is broken, or it ends in a later chunk.
                fault = f"not JSON: {getattr(error, 'msg', error)}"
                break
            is_first = (before, ending) == _START and not match[1]
            if is_first and (table := _table_rows(row)) is not None:
                for number, item in enumerate(table, start=1):
                    place = RowLocation(file, number, "row")
                    yield place, _check_row(item, text[match.end() : end], place)
            else:
                yield location, _check_row(row, text[match.end() : end], location)
            line, start = line + text.count("\n", start, end), end
            fault = "not a list of objects"
            if (before, ending) == _START:
                before, ending = _IN_LIST if match[1] else _WITHOUT_LIST
        text = text[start:]
        if len(text) > MAX_ROW_BYTES:
            raise row_too_long(f"{file}, line {line}")
    if not text.strip() and (before, ending) == _START:
        raise UsageError("the file is empty", where=file, cure="It needs a list of objects.")
    if not ending.fullmatch(text):
        cure = "A .json file holds one list of objects; objects alone, one a line, are .jsonl."
        raise UsageError(fault, where=f"{file}, line {line}", cure=cure)


def _table_rows(value: dict[str, Any]) -> list[Any] | None:
    """The rows of an object that is a table; None for one that is a row."""
    data, names, inner = value.get("data"), value.get("columns"), list(value.values())
    if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        return data
    if isinstance(data, list) and isinstance(names, list):
        is_table = all(isinstance(item, list) and len(item) == len(names) for item in data)
        return (
            [dict(zip(map(str, names), item, strict=True)) for item in data] if is_table else None
        )
    if not inner or not all(isinstance(item, dict) and item for item in inner):
        return None
    if all(map(str.isdecimal, value)):
        return inner
    keys = list(inner[0])
    if all(map(str.isdecimal, keys)) and all(item.keys() == inner[0].keys() for item in inner):
        return [{name: column[key] for name, column in value.items()} for key in keys]
    return None


def _decode(stream: BinaryIO, file: str) -> Iterator[str]:
    line = 1
    try:
        for text in codecs.iterdecode(iter(lambda: stream.read(_CHUNK), b""), "utf-8-sig"):
            yield text
            line += text.count("\n")
    except UnicodeDecodeError as error:
        fault = undecodable(error, file)
        line += error.object.count(b"\n", 0, error.start)
        raise UsageError(fault.what, where=f"{file}, line {line}", cure=fault.cure) from None
