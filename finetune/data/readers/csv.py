"""Rows of CSV (quotes as RFC 4180 has them) and of TSV (GLUE's rules, unless it is quoted)."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import BinaryIO, NamedTuple

from finetune.data.readers.dialect import Dialect, detect_dialect
from finetune.data.readers.text import Line, read_lines, row_too_long
from finetune.data.rows import (
    MAX_COLUMNS,
    MAX_ROW_BYTES,
    LocatedRow,
    ReadOptions,
    RowLocation,
    number_columns,
)
from task_formats import RowError, UsageError

_TAB_CURE = "Fields are split at every tab; a field can hold neither tab nor line end."
_QUOTES_CURE = 'Put a field that holds a {delimiter!r}, a quote or a line end in "quotes".'
_UNNAMED = "Unnamed: "


class _Record(NamedTuple):
    """The fields of a header or row; `line` is where it begins."""

    line: int
    fields: list[str]
    error: RowError | None


def read_delimited(stream: BinaryIO, file: str, options: ReadOptions) -> Iterator[LocatedRow]:
    """Yields rows as {column: text}; `n/a`, `NA`, `null` and `None` are ordinary text.

    Empty lines are skipped, but in a TSV file of one column they are rows with an empty text.
    Columns without a name are called "Unnamed: 0", ..., as pandas does; those of a file without a
    header are called column_1, column_2, ...

    Raises:
        UsageError: The header is wrong, or a quote is never closed.
    """
    dialect = detect_dialect(stream, options)
    lines = read_lines(stream, file)
    if dialect.is_named:
        next(lines)
    records = _parse_csv(lines, file, dialect) if dialect.has_quotes else _split_at_tabs(lines)
    first = next((record for record in records if record.fields not in ([], [""])), None)
    if first is None:
        raise UsageError("the file is empty", where=file, cure="It needs a header and rows.")
    has_header = options.header
    if has_header is None:
        has_header = not options.columns or not set(first.fields).isdisjoint(options.columns)
    if has_header:
        if first.error:
            raise UsageError(first.error.what, where=first.error.where, cure=first.error.cure)
        columns = make_columns(first.fields, file, options)
    else:
        names = options.columns or number_columns(len(first.fields))
        columns, records = make_columns(names, file, options), chain([first], records)
    cure = _QUOTES_CURE.format(delimiter=dialect.delimiter) if dialect.has_quotes else _TAB_CURE
    yield from _rows(records, columns, file, options, cure)


def make_columns(names: Sequence[str], file: str, options: ReadOptions) -> tuple[str, ...]:
    """Returns the columns of a header: renamed, and "Unnamed: 0" and so on where there is no name.

    Raises:
        UsageError: There are too many, or two of one name.
    """
    if len(names) > MAX_COLUMNS:
        cure = "Check that it is a table."
        raise UsageError(f"more than {MAX_COLUMNS:,} columns", where=file, cure=cure)
    named = [name or f"{_UNNAMED}{k}" for k, name in enumerate(names)]
    columns = tuple(options.rename.get(name, name) for name in named)
    if len(set(columns)) < len(columns):
        [(twice, _)] = Counter(columns).most_common(1)
        what = f"the header has {twice!r} twice"
        raise UsageError(what, where=f"{file}, line 1", cure="Rename one of the two columns.")
    return columns


def _rows(
    records: Iterator[_Record], columns: Sequence[str], file: str, options: ReadOptions, cure: str
) -> Iterator[LocatedRow]:
    width = len(columns)
    # Excel leaves the delimiters of spare columns out, in some rows.
    fewest = max(
        (k for k, name in enumerate(columns, 1) if not name.startswith(_UNNAMED)), default=1
    )
    for line, fields, error in records:
        location = RowLocation(file, line)
        if error:
            yield location, error
        elif len(fields) == width:
            yield location, dict(zip(columns, fields, strict=True))
        elif fewest <= len(fields) < width:
            yield location, dict(zip(columns, [*fields, *[""] * width][:width], strict=True))
        elif len(fields) > width and not any(fields[width:]):
            # Delimiters at the end of rows only.
            yield location, dict(zip(columns, fields[:width], strict=True))
        elif options.min_fields and options.min_fields <= len(fields):
            # Extra or missing fields are those just before the last one.
            inner = [*fields[:-1], *[""] * width][: width - 1]
            yield location, dict(zip(columns, [*inner, fields[-1]], strict=True))
        elif fields and not (fields == [""] and width > 1):
            what = f"{len(fields)} fields under a header of {width}"
            title = " Delete lines above the header." if width == 1 else ""
            yield location, RowError(what, where=str(location), cure=cure + title)


def _split_at_tabs(lines: Iterator[Line]) -> Iterator[_Record]:
    for number, text, error in lines:
        fields = text.removesuffix("\n").removesuffix("\r").split("\t")
        yield _Record(number, fields, error)


def _parse_csv(lines: Iterator[Line], file: str, dialect: Dialect) -> Iterator[_Record]:
    # The limit of the csv module is global and smaller than ours, MAX_ROW_BYTES.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    before = int(dialect.is_named)
    first_line, size, line_error = 1, 0, None

    def texts() -> Iterator[str]:
        nonlocal size, line_error
        for _, text, error in lines:
            line_error = line_error or error
            size += len(text)
            if size > MAX_ROW_BYTES:
                raise row_too_long(f"{file}, line {first_line}")
            yield text

    reader = csv.reader(
        texts(), delimiter=dialect.delimiter, skipinitialspace=dialect.has_blanks, strict=True
    )
    while True:
        first_line, size, line_error = before + reader.line_num + 1, 0, None
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = _csv_error(error, file, first_line, before + reader.line_num)
            yield _Record(first_line, ["?"], found)
        else:
            yield _Record(first_line, fields, line_error)


def _csv_error(error: csv.Error, file: str, first_line: int, last_line: int) -> RowError:
    """The error of one line; raises UsageError if an open quote has swallowed later lines."""
    what, cure = "a stray quote", 'Double every quote inside a field: "He said ""no""".'
    if "end of data" in str(error):
        what = "a quote that is never closed"
    elif "new-line" in str(error):
        what, cure = "a carriage return outside quotes", r"Save it with \n as its line end."
    if last_line > first_line:
        raise UsageError(what, where=f"{file}, lines {first_line} to {last_line}", cure=cure)
    return RowError(what, where=f"{file}, line {first_line}", cure=cure)
