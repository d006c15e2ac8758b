"""Rows of one or several files of any format."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.data.readers.csv import read_delimited
from finetune.data.readers.json import read_json, read_json_lines
from finetune.data.readers.parquet import read_parquet
from finetune.data.readers.race import read_race
from finetune.data.readers.text import open_stream
from finetune.data.rows import LocatedRow, ReadOptions, RowLocation, raise_bad_rows
from task_formats import Row, RowError, UsageError
from task_formats.templates import look_up

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
"""File ending to format. Text formats may be compressed: .csv.gz."""


def detect_format(path: Path | str, format: str | None = None) -> str:
    """Returns the format of a file, from its name or as given.

    Args:
        path: The file; `-` is standard input.
        format: A file ending such as csv, with or without the dot.

    Raises:
        UsageError: The format is not known.
    """
    known = ", ".join(FORMATS)
    if format is not None:
        name = format.removeprefix(".")
        if f".{name}" not in FORMATS:
            raise UsageError(f"unknown format {format!r}", cure=f"Known: {known}.")
        return FORMATS[f".{name}"]
    if str(path) == "-":
        what = "standard input has no name that shows its format"
        raise UsageError(what, cure=f"Give one of {known}.")
    name = str(path).lower().removesuffix(".gz")
    detected = FORMATS.get(Path(name).suffix)
    if detected is None:
        raise UsageError(
            f"unknown kind of file {Path(name).suffix!r}",
            where=str(path),
            cure=f"Give the file one of these endings: {known}.",
        )
    return detected


def read_rows(
    path: Path | str, *, format: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[RowLocation, Row]]:
    """Streams the rows of a file with their locations.

    Args:
        path: The file; `-` is standard input, which needs a format.
        format: A file ending such as csv; without it the name of the file decides.
        columns: Column names of a CSV or TSV file that has no header.

    Raises:
        UsageError: The file cannot be read.
        RowError: A row cannot be read.
    """
    return iter(open_file(path, format=format, columns=columns))


def open_file(
    path: Path | str, *, format: str | None = None, columns: Sequence[str] | None = None
) -> "FileRows":
    """The rows of one file, which can be read repeatedly; arguments as for `read_rows`."""
    return FileRows((path,), ReadOptions(detect_format(path, format), tuple(columns or ())))


@dataclass(frozen=True)
class FileRows:
    """The rows of files of one kind, one file after another."""

    files: tuple[Path | str, ...]
    options: ReadOptions

    @property
    def origin(self) -> str:
        """The first file and the number of others."""
        more = len(self.files) - 1
        name = "standard input" if self.files[0] == "-" else str(self.files[0])
        return f"{name} and {more} more" if more else name

    def read(self) -> Iterator[LocatedRow]:
        """Yields all rows in order; a row that cannot be used is a RowError."""
        for path in self.files:
            with open_stream(path) as stream:
                name = "standard input" if path == "-" else str(path)
                yield from read_stream(stream, name, self.options)

    def __iter__(self) -> Iterator[tuple[RowLocation, Row]]:
        return raise_bad_rows(self.read())

    def fingerprint(self) -> str:
        """SHA-256 over the bytes of the files and over the options."""
        options = self.options
        # Spelled as in the first version, so that its runs can be resumed.
        text = (
            f"Reading(format={options.format!r}, columns={options.columns!r}, "
            f"rename={options.rename!r}, shape={options.nested!r}, fewest={options.min_fields!r})"
        )
        digest = hashlib.sha256(text.encode())
        for path in self.files:
            with open_stream(path) as stream:
                file_digest = hashlib.sha256()
                while chunk := stream.read(2**20):
                    file_digest.update(chunk)
            digest.update(file_digest.digest())
        return digest.hexdigest()


def read_stream(stream: BinaryIO, file: str, options: ReadOptions) -> Iterator[LocatedRow]:
    """Yields the rows of an open stream; locations name it `file`."""
    match options.format:
        case "csv" | "tsv":
            return read_delimited(stream, file, options)
        case "jsonl":
            rows = read_json_lines(stream, file)
        case "json":
            rows = read_json(stream, file)
        case "parquet":
            rows = read_parquet(stream, file)
        case "race":
            return read_race(stream, file)
        case other:
            raise AssertionError(other)
    return _adapt(rows, options) if options.rename or options.nested else rows


def _adapt(rows: Iterator[LocatedRow], options: ReadOptions) -> Iterator[LocatedRow]:
    for location, row in rows:
        if isinstance(row, RowError):
            yield location, row
            continue
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
