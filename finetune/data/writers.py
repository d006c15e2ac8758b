"""Rows to files, by the rules the readers read by."""

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


class RowSink(Protocol):
    """Takes rows, one by one."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        ...

    def close(self, whole: bool) -> None:
        """Write what is left, if the rows are `whole`; the stream stays open."""
        ...


class PredictionColumns(NamedTuple):
    """Names of the columns that prediction adds: the label's, and one per class."""

    label: str
    scores: tuple[str, ...]


def name_columns(original: Sequence[str], classes: Sequence[str] = ()) -> PredictionColumns:
    """Names for added columns that clash with none of the original ones.

    Raises UsageError where even the longer name is taken.

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


@contextmanager
def write_rows(
    path: Path | str, columns: Sequence[str], *, format: str | None = None
) -> Iterator[RowSink]:
    """A sink for rows of these columns: CSV, TSV, JSON lines or Parquet, `.gz` too.

    `-` is standard output, `format` given. A file appears whole or not at all. A value that is
    missing is empty. In CSV and TSV what is no text is written as JSON writes it.

        with write_rows("out.csv", ("text", "label")) as sink:
            sink.write({"text": "fine", "label": "yes"})

    Raises UsageError where the file cannot be written, and for a row the format cannot hold.
    """
    kind = detect_format(path, format)
    name = "standard output" if str(path) == "-" else str(path)
    try:
        with _open_output(path) as stream:
            sink, whole = _sink(kind, stream, columns, name), False
            try:
                yield sink
                whole = True
            finally:
                sink.close(whole)
    except BrokenPipeError:
        raise
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UsageError(
            what, where=name, cure="Is there space, and may you write there?"
        ) from error


def _sink(kind: str, stream: BinaryIO, columns: Sequence[str], name: str) -> RowSink:
    if kind == "parquet":
        return ParquetSink(stream, columns, name)
    if kind in ("jsonl", "json"):
        return JsonSink(stream, columns, as_list=kind == "json")
    return TextSink(stream, columns, name, kind)


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
                with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                    yield cast(BinaryIO, packed)
            else:
                yield stream
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class TextSink:
    """CSV with quotes where they are needed, or TSV that refuses what it cannot hold."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str, kind: str) -> None:
        self._stream, self._columns, self._where = stream, tuple(columns), where
        self._join = self._tabs if kind == "tsv" else self._commas
        self._stream.write(self._join(self._columns))

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self._stream.write(self._join([_text(row.get(name)) for name in self._columns]))

    def close(self, whole: bool) -> None:
        """Nothing is left: every row was written at once."""

    def _tabs(self, fields: Sequence[str]) -> bytes:
        line = "\t".join(fields)
        if line.count("\t") >= len(fields) or "\n" in line or "\r" in line:
            bad = next(k for k, text in enumerate(fields) if set(text) & set("\t\n\r"))
            what = f"the column {self._columns[bad]!r} holds a tab or a line end"
            raise RowError(what, where=self._where, cure="Write .csv or .jsonl instead of .tsv.")
        return f"{line}\n".encode()

    def _commas(self, fields: Sequence[str]) -> bytes:
        if len(fields) == 1 and not fields[0]:
            return b'""\n'
        return f"{','.join(map(_quoted, fields))}\n".encode()


def _quoted(text: str) -> str:
    # csv.writer leaves a lone carriage return bare, which readers take for a line end.
    if any(character in text for character in '",\n\r'):
        text = text.replace('"', '""')
        return f'"{text}"'
    return text


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float | list | dict):
        return _as_json(value)
    return str(value)


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        raise RowError("a value is nested too deeply", cure="Leave its column out.") from None


class JsonSink:
    """JSON, one object a line, or as one list."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], *, as_list: bool) -> None:
        self._stream, self._columns, self._as_list = stream, tuple(columns), as_list
        self._first = True

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row; a column it lacks is left out."""
        kept = {name: row[name] for name in self._columns if name in row}
        text = _as_json(kept)
        before = ("[" if self._first else ",\n") if self._as_list else ""
        self._first = False
        self._stream.write(f"{before}{text}{'' if self._as_list else chr(10)}".encode())

    def close(self, whole: bool) -> None:
        """End the list."""
        if self._as_list and whole:
            self._stream.write(b"[]\n" if self._first else b"]\n")
