"""Rows of one or several files, whatever their format."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from finetune.data.readers.csv import scan_delimited
from finetune.data.readers.json import scan_json, scan_json_lines
from finetune.data.readers.parquet import scan_parquet
from finetune.data.readers.race import scan_race
from finetune.data.readers.text import open_stream
from finetune.data.rows import ReadOptions, RowLocation, Scanned, raise_bad_rows
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
"""Name ending to format. Text formats may be compressed and then end in .gz as well."""


def detect_format(path: Path | str, format: str | None = None) -> str:
    """The format of a file, by its name or as told; UsageError where neither says."""
    known = ", ".join(FORMATS)
    if format is not None:
        name = format.removeprefix(".")
        if f".{name}" not in FORMATS:
            raise UsageError(f"unknown format {format!r}", cure=f"Known: {known}.")
        return FORMATS[f".{name}"]
    if str(path) == "-":
        raise UsageError("standard input has no name that tells its format", cure=f"Say {known}.")
    name = str(path).lower().removesuffix(".gz")
    found = FORMATS.get(Path(name).suffix)
    if found is None:
        raise UsageError(
            f"unknown kind of file {Path(name).suffix!r}",
            where=str(path),
            cure=f"Give the file one of these endings: {known}.",
        )
    return found


def read_rows(
    path: Path | str, *, format: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[RowLocation, Row]]:
    """The rows of a file with their places, streamed; `-` is standard input, `format` given.

    `columns` names the columns of a CSV or TSV file that has no header.
    Raises UsageError for a file, RowError for a row that cannot be read.
    """
    return iter(open_file(path, format=format, columns=columns))


def open_file(
    path: Path | str, *, format: str | None = None, columns: Sequence[str] | None = None
) -> "FileRows":
    """The rows of one file, to be read once or many times (standard input: once)."""
    return FileRows((path,), ReadOptions(detect_format(path, format), tuple(columns or ())))


@dataclass(frozen=True)
class FileRows:
    """The rows of files that are read alike, one file after the other."""

    files: tuple[Path | str, ...]
    batch_config: ReadOptions

    @property
    def origin(self) -> str:
        """The file, or the first of them and their number."""
        more = len(self.files) - 1
        name = "standard input" if self.files[0] == "-" else str(self.files[0])
        return f"{name} and {more} more" if more else name

    def scan(self) -> Iterator[Scanned]:
        """All rows in order, unusable ones as the RowError that says why."""
        for path in self.files:
            with open_stream(path) as stream:
                name = "standard input" if path == "-" else str(path)
                yield from scan_stream(stream, name, self.batch_config)

    def __iter__(self) -> Iterator[tuple[RowLocation, Row]]:
        return raise_bad_rows(self.scan())

    def fingerprint(self) -> str:
        """A sha256 over the bytes of the files and the way they are read."""
        digest = hashlib.sha256(repr(self.batch_config).encode())
        for path in self.files:
            with open_stream(path) as stream:
                file_digest = hashlib.sha256()
                while chunk := stream.read(2**20):
                    file_digest.update(chunk)
            digest.update(file_digest.digest())
        return digest.hexdigest()


def scan_stream(stream: BinaryIO, file: str, batch_config: ReadOptions) -> Iterator[Scanned]:
    """The rows of an open stream; `file` is what places call it."""
    match batch_config.format:
        case "csv" | "tsv":
            return scan_delimited(stream, file, batch_config)
        case "jsonl":
            scanned = scan_json_lines(stream, file)
        case "json":
            scanned = scan_json(stream, file)
        case "parquet":
            scanned = scan_parquet(stream, file)
        case "race":
            return scan_race(stream, file)
        case other:
            raise AssertionError(other)
    return _adapt(scanned, batch_config) if batch_config.rename or batch_config.shape else scanned


def _adapt(scanned: Iterator[Scanned], batch_config: ReadOptions) -> Iterator[Scanned]:
    for place, row in scanned:
        if isinstance(row, RowError):
            yield place, row
            continue
        renamed = {batch_config.rename.get(name, name): value for name, value in row.items()}
        yield place, {**renamed, **_reshape(renamed, batch_config.shape)}


def _reshape(row: Row, shape: Mapping[str, Any]) -> dict[str, Any]:
    """What `shape` finds in a nested row; a row without these paths stays as it is."""
    try:
        return {
            name: _reshape(row, path) if isinstance(path, Mapping) else look_up(row, path)
            for name, path in shape.items()
        }
    except KeyError:
        return {}
