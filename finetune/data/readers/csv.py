"""Rows of CSV (quotes as everywhere) and of TSV (GLUE's rules: no quotes, no escapes)."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import BinaryIO

from finetune.data.readers.text import Line, read_lines, too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, ReadOptions, RowLocation, Scanned
from task_formats import RowError, UsageError

Record = tuple[int, list[str], RowError | None]
"""The line where it begins, its fields, and what is wrong with it."""

_CURES = {
    "tsv": "Fields are split at every tab; a field can hold neither tab nor line end.",
    "csv": 'Put a field that holds a comma, a quote or a line end in "quotes".',
}


def scan_delimited(stream: BinaryIO, file: str, options: ReadOptions) -> Iterator[Scanned]:
    """Rows of a stream as {column: text}; `n/a`, `NA`, `null` and `None` are text like any other.

    Empty lines are no rows, but in a table of one column they are empty texts in TSV.
    Raises UsageError for a faulty header, and where a quote is never closed.
    """
    lines = read_lines(stream, file)
    records = _split_tabs(lines) if options.format == "tsv" else _parse_quotes(lines, file)
    first = next((record for record in records if record[1] not in ([], [""])), None)
    if first is None:
        raise UsageError("the file is empty", where=file, cure="It needs a header and rows.")
    headless = bool(options.columns) and not set(first[1]) & set(options.columns)
    if first[2] and not headless:
        raise UsageError(first[2].what, where=first[2].where, cure=first[2].cure)
    columns = _name_columns(options.columns if headless else first[1], file, options)
    rest = chain([first], records) if headless else records
    yield from _rows(rest, columns, file, options)


def _rows(
    records: Iterator[Record], columns: Sequence[str], file: str, options: ReadOptions
) -> Iterator[Scanned]:
    width = len(columns)
    for number, fields, fault in records:
        place = RowLocation(file, number)
        if fault:
            yield place, fault
        elif len(fields) == width:
            yield place, dict(zip(columns, fields, strict=True))
        elif options.fewest and options.fewest <= len(fields):
            # The extra or lacking fields stand just before the last one.
            inner = dict(zip_longest(columns[:-1], fields[: width - 1][: len(fields) - 1]))
            filled = {name: text or "" for name, text in inner.items()}
            yield place, {**filled, columns[-1]: fields[-1]}
        elif fields and not (fields == [""] and width > 1):
            what = f"{_count(fields)} fields under a header of {width}"
            yield place, RowError(what, where=str(place), cure=_CURES[options.format])


def _count(fields: Sequence[str]) -> str:
    return f"more than {MAX_COLUMNS}" if len(fields) > MAX_COLUMNS else str(len(fields))


def _name_columns(names: Sequence[str], file: str, options: ReadOptions) -> tuple[str, ...]:
    if len(names) > MAX_COLUMNS:
        raise UsageError(f"more than {MAX_COLUMNS:,} columns", where=file, cure="Is it a table?")
    columns = tuple(options.rename.get(name, name) for name in names)
    if len(set(columns)) < len(columns):
        twice, _ = Counter(columns).most_common(1)[0]
        what = f"the header has {twice!r} twice"
        raise UsageError(what, where=f"{file}, line 1", cure="Rename one of the two columns.")
    if options.format == "tsv" and any("\r" in name for name in columns):
        what = "a carriage return inside the header"
        raise UsageError(what, where=file, cure=r"Save the file with \n as its line end.")
    return columns


def _split_tabs(lines: Iterator[Line]) -> Iterator[Record]:
    for number, text, fault in lines:
        line = text[:-1] if text.endswith("\n") else text
        line = line[:-1] if line.endswith("\r") else line
        yield number, line.split("\t", MAX_COLUMNS), fault


class _Feed:
    """Hands lines to csv.reader and keeps what the reader does not tell."""

    def __init__(self, lines: Iterator[Line], file: str) -> None:
        self.lines, self.file = lines, file
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """A new record begins at the next line."""
        self.start, self.size = self.number + 1, 0
        self.fault: RowError | None = None

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number, self.fault = line.number, self.fault or line.fault
        self.size += len(line.text)
        if self.size > MAX_ROW_BYTES:
            raise too_long(f"{self.file}, line {self.start}")
        return line.text


def _parse_quotes(lines: Iterator[Line], file: str) -> Iterator[Record]:
    # The limit is the module's own and global; MAX_ROW_BYTES is the bound that holds here.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    feed = _Feed(lines, file)
    reader = csv.reader(feed, strict=True)
    while True:
        feed.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield feed.start, ["?"], _misquoted(error, feed)
        else:
            yield feed.start, fields, feed.fault


def _misquoted(error: csv.Error, feed: _Feed) -> RowError:
    """The fault of one line; raises UsageError where the quote swallowed the lines after it."""
    what, cure = "a stray quote", 'Double every quote inside a field: "He said ""no""".'
    if "end of data" in str(error):
        what = "a quote that is never closed"
    elif "new-line" in str(error):
        what, cure = "a carriage return outside quotes", r"Save it with \n as its line end."
    if feed.number > feed.start:
        where = f"{feed.file}, lines {feed.start} to {feed.number}"
        raise UsageError(what, where=where, cure=cure)
    return RowError(what, where=f"{feed.file}, line {feed.start}", cure=cure)
