"""Rows of JSON lines and of JSON lists, read with limited memory."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from finetune.data.known_datasets import split_words
from finetune.data.readers.text import find_invalid_character, read_lines, row_too_long
from finetune.data.rows import MAX_ROW_BYTES, LocatedRow, RowLocation, number_columns
from finetune.storage.files import undecodable
from task_formats import RowError, UsageError, suggest

_CHUNK = 2**20
_MAX_TABLE = 2**26
"""Characters of the longest object that is a table."""
_ROWS_KEYS = ("data", "rows", "examples", "records", "items", "instances", "samples", "questions")
"""Keys of an object whose values are its rows."""
_SPLIT_NAME = re.compile(r"(^|[_.-])(train|test|dev|val|eval|valid|validation)([_.-]|$)", re.I)
_SPLITS_CURE = "Choose one: --split NAME with --data FILE, or data: {path: FILE, train: NAME}."

# What comes before the next object, and what ends the file.
_START = re.compile(r"\s*(?:(\[)\s*(?=[{[])|(?=\{))"), re.compile(r"\s*\[\s*\]\s*")
_IN_LIST = re.compile(r"\s*,\s*(?=[{[])"), re.compile(r"\s*,?\s*\]\s*")
_WITHOUT_LIST = re.compile(r"\s*(?=\{)"), re.compile(r"\s*")


def read_json_lines(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields one object per line; empty lines are skipped."""
    for number, text, error in read_lines(stream, file):
        if error or text.strip():
            location = RowLocation(file, number)
            yield location, error or _parse_line(text, location)


def _parse_line(text: str, location: RowLocation) -> dict[str, Any] | RowError:
    try:
        return _check_row(json.loads(text), "\\u" in text, location)
    except json.JSONDecodeError as error:
        where = f"{location}, column {error.pos + 1}"
        return RowError(f"not JSON: {error.msg}", where=where, cure="Write one object per line.")
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSON: {error}", where=str(location))


def _check_row(row: Any, has_escapes: bool, location: RowLocation) -> dict[str, Any] | RowError:
    """Returns the row, or why this JSON value is not one."""
    if not isinstance(row, dict):
        what = f"a {type(row).__name__}, not an object"
        return RowError(what, where=str(location), cure='Write {"column": value, ...}.')
    bad = find_invalid_character(row) if has_escapes else None
    if bad is None:
        return row
    name = "a NUL" if bad == "\0" else "half of a surrogate pair"
    what = f"\\u{ord(bad):04x} is {name}, not text"
    return RowError(what, where=str(location), cure="Remove the character.")


def read_json(stream: BinaryIO, file: str, split: str | None = None) -> Iterator[LocatedRow]:
    """Yields the rows of one list, read in chunks; without a list, objects one after another.

    A row is an object, or a list of values, which get the names column_1, column_2, ... One object
    may be a table: pandas' orients columns, index, split and table, lists of equal length, or
    {"data": [...]}. An object of splits is {"train": [...], "test": [...]}, of which one is read.

    Args:
        stream: UTF-8.
        file: Its name, for messages.
        split: The split to read, of an object of splits.

    Raises:
        UsageError: The list itself is broken, or there is no such split.
    """
    text, line, fault, at_end = "", 1, "not a list of objects", False
    decode, (before, ending) = json.JSONDecoder().raw_decode, _START
    chunks = _decode(stream, file)
    while not at_end:
        # An object that may be a table is tried again when it is twice as long.
        is_object = (before, ending) == _START and text.lstrip()[:1] == "{"
        wanted = 2 * len(text) if is_object else len(text) + 1
        while not at_end and len(text) < wanted:
            chunk = next(chunks, None)
            at_end, text = chunk is None, text + (chunk or "")
        start = 0
        while match := before.match(text, start):
            location = RowLocation(file, line + text.count("\n", start, match.end()))
            try:
                row, end = decode(text, match.end())
            except (ValueError, RecursionError) as error:
                # Either it is broken, or it ends in a later chunk.
                fault = f"not JSON: {getattr(error, 'msg', error)}"
                break
            is_first = (before, ending) == _START
            has_escapes = text.find("\\u", match.end(), end) >= 0
            table = None
            if is_first and not match[1]:
                table = _find_table(row, file, split, is_alone=not text[end:].strip())
            if table is not None:
                for number, item in enumerate(table, start=1):
                    place = RowLocation(file, number, "row")
                    yield place, _check_row(_name_values(item), has_escapes, place)
            else:
                if is_first and split is not None:
                    raise UsageError("it holds no splits", where=file, cure=_SPLITS_CURE)
                yield location, _check_row(_name_values(row), has_escapes, location)
            line, start = line + text.count("\n", start, end), end
            fault = "not a list of objects"
            if is_first:
                before, ending = _IN_LIST if match[1] else _WITHOUT_LIST
        text = text[start:]
        is_object = (before, ending) == _START and text.lstrip()[:1] == "{"
        if is_object and len(text) > _MAX_TABLE:
            what = f"one object of more than {_MAX_TABLE:,} characters"
            raise UsageError(what, where=file, cure="Save the rows as JSON lines (.jsonl).")
        if not is_object and len(text) > MAX_ROW_BYTES:
            raise row_too_long(f"{file}, line {line}")
    if not text.strip() and (before, ending) == _START:
        raise UsageError("the file is empty", where=file, cure="It needs a list of objects.")
    if not ending.fullmatch(text):
        cure = "A .json file holds one list of objects; objects alone, one a line, are .jsonl."
        raise UsageError(fault, where=f"{file}, line {line}", cure=cure)


def find_json_splits(stream: BinaryIO, file: str) -> list[str]:
    """Names of the splits of a file; empty if it holds rows."""
    try:
        next(read_json(stream, file), None)
    except SplitsError as error:
        return [*error.names]
    return []


class SplitsError(UsageError):
    """A file holds several splits, and none was chosen."""

    names: Sequence[str] = ()


def _find_table(
    value: dict[str, Any], file: str, split: str | None, *, is_alone: bool
) -> list[Any] | None:
    """The rows of an object that is a table or splits; None for one that is a row."""
    if is_alone and any(map(_SPLIT_NAME.search, value)):
        splits = {name: _find_rows(item) for name, item in value.items()}
        if all(rows is not None for rows in splits.values()):
            if split is None:
                what = f"the file holds splits: {', '.join(splits)}"
                error = SplitsError(what, where=file, cure=_SPLITS_CURE)
                error.names = [*splits]
                raise error
            for name in split_words(split):
                if (rows := splits.get(name)) is not None:
                    return rows
            cure = suggest(split, splits)
            raise UsageError(f"no split {split!r}", where=file, cure=cure)
    return _table_rows(value, is_alone=is_alone)


def _find_rows(value: Any) -> list[Any] | None:
    """The rows of a split: a list of objects or of lists, or a table."""
    if isinstance(value, list):
        is_rows = all(isinstance(item, dict) or _is_values(item) for item in value)
        return value if is_rows else None
    return _table_rows(value, is_alone=True) if isinstance(value, dict) else None


def _is_values(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)


def _name_values(row: Any) -> Any:
    return dict(zip(number_columns(len(row)), row, strict=True)) if _is_values(row) else row


def _table_rows(value: dict[str, Any], *, is_alone: bool) -> list[Any] | None:
    """The rows of an object that is a table; None for one that is a row."""
    names, data, inner = value.get("columns"), value.get("data"), list(value.values())
    for key in _ROWS_KEYS:
        items = value.get(key)
        is_rows = isinstance(items, list) and items and all(isinstance(i, dict) for i in items)
        if is_rows and (is_alone or key == "data"):
            return items
    if isinstance(data, list) and isinstance(names, list):
        is_table = all(isinstance(item, list) and len(item) == len(names) for item in data)
        return (
            [dict(zip(map(str, names), item, strict=True)) for item in data] if is_table else None
        )
    lengths = {len(item) if isinstance(item, list) else -1 for item in inner}
    if is_alone and len(inner) > 1 and len(lengths) == 1 and max(lengths) > 1:
        return [dict(zip(value, fields, strict=True)) for fields in zip(*inner, strict=True)]
    if not inner or not all(isinstance(item, dict) and item for item in inner):
        return None
    is_by_id = is_alone and len(inner) > 2 and len({frozenset(item) for item in inner}) == 1
    if all(map(str.isdecimal, value)):
        return inner
    keys = list(inner[0])
    if all(map(str.isdecimal, keys)) and all(item.keys() == inner[0].keys() for item in inner):
        return [{name: column[key] for name, column in value.items()} for key in keys]
    return inner if is_by_id else None


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
