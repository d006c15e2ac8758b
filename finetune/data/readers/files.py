"""Rows of one or several files of any format."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.data.readers.csv import read_delimited
from finetune.data.readers.dialect import describe_text
from finetune.data.readers.excel import describe_workbook, read_workbook
from finetune.data.readers.json import read_json, read_json_lines
from finetune.data.readers.race import read_race
from finetune.data.readers.text import as_utf8, check_is_data, open_stream, peek
from finetune.data.rows import LocatedRow, ReadOptions, RowLocation, Rows
from task_formats import Row, RowError, UsageError
from task_formats.templates import look_up

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".xlsx": "xlsx",
    ".xls": "xlsx",
    ".ods": "xlsx",
}
"""File ending to format. Files may be compressed: .csv.gz."""


WRITTEN_FORMATS = ("csv", "tsv", "jsonl", "json", "parquet")
BINARY_FORMATS = ("parquet", "arrow", "xlsx")
_COUNTED_BYTES = 2**24
"""Bytes in which lines are counted."""

_READERS = {"jsonl": read_json_lines, "race": read_race}
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_GIVEN = ("delimiter", "encoding", "header", "split")
"""Options that are part of a fingerprint only where they are given."""


def detect_format(path: Path | str, format: str | None = None) -> str:
    """Returns the format of a file: as given (a file ending such as csv), or from its name.

    Raises:
        UsageError: The format is not known, or the path is `-` and no format is given.
    """
    known = ", ".join(FORMATS)
    if format is not None:
        if detected := FORMATS.get(f".{format.removeprefix('.')}"):
            return detected
        raise UsageError(f"unknown format {format!r}", cure=f"Known: {known}.")
    if str(path) == "-":
        what = "standard input has no name that shows its format"
        raise UsageError(what, cure=f"Give one of {known}.")
    ending = find_ending(path)
    if ending not in FORMATS:
        if ending in _ARCHIVES:
            what, cure = "an archive", "Unpack it, and name the file in it that holds the rows."
            raise UsageError(what, where=str(path), cure=cure)
        cure = f"Give the file one of these endings: {known}, or name its kind with --input-format."
        raise UsageError(f"unknown kind of file {ending!r}", where=str(path), cure=cure)
    return FORMATS[ending]


def detect_output_format(path: Path | str, format: str | None = None) -> str:
    """Returns the format in which rows are written to a file; arguments as for `detect_format`.

    Raises:
        UsageError: The format is not known, or is only read.
    """
    kind = detect_format(path, format)
    if kind not in WRITTEN_FORMATS or str(path).lower().endswith(".xz"):
        cure = "Name a file that ends in .csv, .tsv, .jsonl, .json or .parquet."
        raise UsageError("files of this kind are read, not written", where=str(path), cure=cure)
    return kind


def find_ending(path: Path | str) -> str:
    """Returns the ending of a file without that of its compression: .csv for a.csv.gz."""
    return Path(re.sub(r"\.(gz|xz)$", "", str(path).lower())).suffix


def read_rows(
    path: Path | str,
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> Iterator[tuple[RowLocation, Row]]:
    """Streams the rows of a file with their locations.

    Args:
        path: The file; `-` is standard input, which needs a format.
        format: A file ending such as csv; without it the name of the file decides.
        columns: Column names of a CSV or TSV file that has no header.
        delimiter: The character between the columns; without it the file is searched for it.
        encoding: Such as cp1252; without it UTF-8, or UTF-16 if the file begins so.
        header: Whether a CSV or TSV file has a header; without one its columns are `columns`, or
            column_1, column_2, ...

    Raises:
        UsageError: The file cannot be read.
        RowError: A row cannot be read.
    """
    rows = open_file(
        path, format=format, columns=columns, delimiter=delimiter, encoding=encoding, header=header
    )
    return iter(rows)


def open_file(
    path: Path | str,
    *,
    format: str | None = None,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> "FileRows":
    """The rows of one file, which can be read repeatedly; arguments as for `read_rows`."""
    options = ReadOptions(
        detect_format(path, format),
        tuple(columns or ()),
        delimiter=delimiter,
        encoding=encoding,
        header=header,
    )
    return FileRows((path,), options)


@dataclass(frozen=True)
class FileRows(Rows):
    """The rows of files of one kind, one file after another."""

    files: tuple[Path | str, ...]
    options: ReadOptions

    @property
    def origin(self) -> str:
        """The first file and the number of others."""
        more = len(self.files) - 1
        return f"{_name(self.files[0])} and {more} more" if more else _name(self.files[0])

    def read(self) -> Iterator[LocatedRow]:
        """Yields all rows in order; a row that cannot be used is a RowError."""
        for path in self.files:
            with open_stream(path) as stream:
                yield from read_stream(stream, _name(path), self.options)

    def describe(self) -> str:
        """Says what was found out about the first file beyond its ending; empty if nothing."""
        kind, file = self.options.format, self.files[0]
        if kind in ("parquet", "arrow") or file == "-":
            return ""
        with open_stream(file) as stream:
            describe = describe_workbook if kind == "xlsx" else describe_text
            return describe(stream, str(file), self.options)

    def class_names(self) -> dict[str, list[str]]:
        """Returns the names that `datasets` keeps in Parquet and Arrow files."""
        if self.options.format not in ("parquet", "arrow") or self.files[0] == "-":
            return {}
        from finetune.data.readers.parquet import read_class_names

        with open_stream(self.files[0]) as stream:
            return read_class_names(stream, self.origin, self.options.format)

    def estimate_count(self) -> int | None:
        """About how many rows there are; None for JSON, RACE and what is compressed or a pipe."""
        counts = [_estimate_count(path, self.options.format) for path in self.files]
        return None if None in counts else sum(filter(None, counts))

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the files and over the options."""
        options = self.options
        # Spelled as in the first version, so that its runs can be resumed.
        text = (
            f"Reading(format={options.format!r}, columns={options.columns!r}, "
            f"rename={options.rename!r}, shape={options.nested!r}, fewest={options.min_fields!r})"
        )
        given = {name: getattr(options, name) for name in _GIVEN}
        if given := {name: value for name, value in given.items() if value is not None}:
            text += repr(given)
        digest = hashlib.sha256(text.encode())
        for path in self.files:
            with open_stream(path) as stream:
                file_digest = hashlib.sha256()
                while chunk := stream.read(2**20):
                    file_digest.update(chunk)
            digest.update(file_digest.digest())
        return digest.hexdigest()


def _estimate_count(path: Path | str, format: str) -> int | None:
    """Rows of a Parquet file; lines of a text, in a large one those that its beginning suggests."""
    if format not in ("csv", "tsv", "jsonl", "parquet") or Path(path).suffix in (".gz", ".xz"):
        return None
    if str(path) == "-" or not Path(path).is_file():
        return None
    with open_stream(path) as stream:
        if format == "parquet":
            from finetune.data.readers.parquet import count_parquet_rows

            return count_parquet_rows(stream)
        start, size = stream.read(_COUNTED_BYTES), Path(path).stat().st_size
        lines = start.count(b"\n") * size / max(len(start), 1)
        return max(round(lines) - (format != "jsonl"), 0)


def _name(path: Path | str) -> str:
    return "standard input" if path == "-" else str(path)


def read_stream(stream: BinaryIO, file: str, options: ReadOptions) -> Iterator[LocatedRow]:
    """Yields the rows of an open stream; locations name it `file`."""
    check_is_data(stream, file)
    if options.format not in BINARY_FORMATS:
        stream = as_utf8(stream, file, options.encoding)
    if options.format in ("csv", "tsv"):
        return read_delimited(stream, file, options)
    if options.format == "xlsx":
        return read_workbook(stream, file, options)
    is_list = options.format == "jsonl" and re.match(rb"\s*\[\s*\{", peek(stream, 100))
    if options.format == "json" or is_list:
        rows = read_json(stream, file, options.split)
    elif options.format in ("parquet", "arrow"):
        # Slow to import, so only who reads such files waits for it.
        from finetune.data.readers.parquet import read_arrow, read_parquet

        rows = (read_parquet if options.format == "parquet" else read_arrow)(stream, file)
    else:
        rows = _READERS[options.format](stream, file)
    return _adapt(rows, options)


def _adapt(rows: Iterator[LocatedRow], options: ReadOptions) -> Iterator[LocatedRow]:
    if not options.rename and not options.nested:
        yield from rows
        return
    for location, row in rows:
        if isinstance(row, RowError):
            yield location, row
        else:
            renamed = {options.rename.get(name, name): value for name, value in row.items()}
            yield location, {**renamed, **_select_nested(renamed, options.nested)}


def _select_nested(row: Row, paths: Mapping[str, Any]) -> dict[str, Any]:
    """The values at some paths of a nested row; none if the row lacks one of them."""
    try:
        return {
            name: _select_nested(row, path) if isinstance(path, Mapping) else look_up(row, path)
            for name, path in paths.items()
        }
    except KeyError:
        return {}
