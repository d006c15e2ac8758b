"""Rows to files that the readers read back."""

import gzip
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from finetune.data.readers.files import detect_format
from finetune.data.readers.parquet import ParquetSink
from task_formats import RowError, UsageError


class PredictionColumns(NamedTuple):
    """Names of the columns that prediction adds: the label's, and one for each class."""

    label: str
    scores: tuple[str, ...]


def name_columns(original: Sequence[str], classes: Sequence[str] = ()) -> PredictionColumns:
    """Names the added columns so that they differ from the original ones.

    Raises UsageError if the longer name of one is taken, too.

    >>> name_columns(["text", "label"], ["no", "yes"])
    PredictionColumns(label='predicted_label', scores=('probability_no', 'probability_yes'))
    """
    taken = set(original)

    def choose(*names: str) -> str:
        free = next((name for name in names if name not in taken), None)
        if free is None:
            what = f"the rows already have columns {' and '.join(map(repr, names))}"
            raise UsageError(what, cure="Rename one of them in the input.")
        taken.add(free)
        return free

    label = choose("label", "predicted_label")
    scores = [choose(f"probability_{name}", f"predicted_probability_{name}") for name in classes]
    return PredictionColumns(label, tuple(scores))


class RowSink(Protocol):
    """Writes rows to an open stream."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row."""
        ...

    def close(self, complete: bool) -> None:
        """Writes the end of the file if the rows are complete; the stream stays open."""
        ...


@contextmanager
def write_rows(
    path: Path | str, columns: Sequence[str], *, format: str | None = None
) -> Iterator[RowSink]:
    """Opens a CSV, TSV, JSON, JSON lines or Parquet file to write rows to.

    A regular file appears at the end of the block, complete, or not at all. Missing values are
    empty; in CSV and TSV, values other than text are written as JSON.

        with write_rows("out.csv", ("text", "label")) as sink:
            sink.write({"text": "fine", "label": "yes"})

    Args:
        path: The file, compressed if it ends in .gz; `-` is standard output, which needs a format.
        columns: Columns to write.
        format: A file ending such as csv; without it the name of the file decides.

    Raises:
        UsageError: The file cannot be written.
        RowError: The format cannot hold a row.
    """
    kind = detect_format(path, format)
    name = "standard output" if str(path) == "-" else str(path)
    try:
        with _open_output(path) as stream:
            if kind == "parquet":
                sink: RowSink = ParquetSink(stream, columns, name)
            elif kind in ("jsonl", "json"):
                sink = _JsonSink(stream, columns, as_list=kind == "json")
            else:
                sink = _TextSink(stream, columns, name, kind)
            complete = False
            try:
                yield sink
                complete = True
            finally:
                sink.close(complete)
    except BrokenPipeError:
        raise
    except OSError as error:
        what, cure = f"cannot be written: {error.strerror or error}", "Check space and permissions."
        raise UsageError(what, where=name, cure=cure) from error


@contextmanager
def _open_output(path: Path | str) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # A device or a pipe cannot be replaced by a renamed file.
        with open(target, "wb") as stream:
            yield stream
        return
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with open(partial, "wb") as stream:
            if target.suffix == ".gz":
                with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as compressed:
                    yield cast(BinaryIO, compressed)
            else:
                yield stream
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class _TextSink:
    """Writes CSV with quotes where needed, or TSV, which refuses tabs and line ends in a field."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str, kind: str) -> None:
        self._stream, self._columns, self._where = stream, tuple(columns), where
        self._join = self._join_tsv if kind == "tsv" else _join_csv
        self._stream.write(self._join(self._columns))

    def write(self, row: Mapping[str, Any]) -> None:
        self._stream.write(self._join([_text(row.get(name)) for name in self._columns]))

    def close(self, complete: bool) -> None:
        pass

    def _join_tsv(self, fields: Sequence[str]) -> bytes:
        line = "\t".join(fields)
        if line.count("\t") >= len(fields) or "\n" in line or "\r" in line:
            bad = next(k for k, text in enumerate(fields) if set(text) & set("\t\n\r"))
            what = f"the column {self._columns[bad]!r} holds a tab or a line end"
            raise RowError(what, where=self._where, cure="Write .csv or .jsonl instead of .tsv.")
        return f"{line}\n".encode()


def _join_csv(fields: Sequence[str]) -> bytes:
    if len(fields) == 1 and not fields[0]:
        return b'""\n'
    return f"{','.join(map(_quote, fields))}\n".encode()


def _quote(text: str) -> str:
    # Not csv.writer: it leaves a lone carriage return bare, which readers take for a line end.
    if any(character in text for character in '",\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return _as_json(value) if isinstance(value, bool | int | float | list | dict) else str(value)


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        raise RowError("a value is nested too deeply", cure="Leave its column out.") from None


class _JsonSink:
    """Writes one JSON object per line, or one list."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], *, as_list: bool) -> None:
        self._stream, self._columns, self._as_list = stream, tuple(columns), as_list
        self._first = True

    def write(self, row: Mapping[str, Any]) -> None:
        text = _as_json({name: row[name] for name in self._columns if name in row})
        separator = "[" if self._first else ",\n"
        self._stream.write((f"{separator}{text}" if self._as_list else f"{text}\n").encode())
        self._first = False

    def close(self, complete: bool) -> None:
        if self._as_list and complete:
            self._stream.write(b"[]\n" if self._first else b"]\n")
