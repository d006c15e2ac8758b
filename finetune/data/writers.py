"""Rows to files that the readers read back."""

import gzip
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from finetune.data.readers.dialect import join_fields
from finetune.data.readers.files import detect_output_format
from finetune.storage.files import name_partial
from finetune.storage.terminal import escape_controls
from task_formats import UsageError

_strict = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)


def _as_json(value: Any) -> str:
    """JSON that every program can read: NaN and infinity become null."""
    try:
        return _strict.encode(value)
    except ValueError:
        return _strict.encode(_without_nonfinite(value))


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def name_columns(
    original: Sequence[str], classes: Sequence[str] = (), *, errors: bool = False
) -> list[str]:
    """Names the columns that prediction adds so that they differ from the original ones.

    With `errors` the last one is for the reason why a row has no label.

    >>> name_columns(["text", "label"], ["no", "yes"])
    ['predicted_label', 'probability_no', 'probability_yes']
    """
    added: list[str] = []
    names = ["label", *(f"probability_{name}" for name in classes)]
    for name in [*names, "error"] if errors else names:
        longer = f"predicted_{name}"
        if name in original and longer in original:
            what = f"the rows already have columns {name!r} and {longer!r}"
            raise UsageError(what, cure="Rename one of them in the input.")
        added.append(longer if name in original else name)
    return added


def check_output(path: Path | str) -> None:
    """Raises UsageError where a file of rows would be written through a link.

    Links to pipes and devices, such as /dev/stdout, may be written to.
    """
    path = Path(path)
    if path.is_symlink() and (path.is_file() or not path.exists()):
        cure = "Name the file itself, or - for standard output."
        raise UsageError("a link, and links are not followed", where=str(path), cure=cure)


class RowSink(Protocol):
    """Writes rows to an open stream."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row."""

    def flush(self) -> None:
        """Passes all rows to the stream."""

    def close(self, complete: bool) -> None:
        """Writes the end of the file if the rows are complete; the stream stays open."""


@contextmanager
def write_rows(
    path: Path | str, columns: Sequence[str], *, format: str | None = None
) -> Iterator[RowSink]:
    """Opens a CSV, TSV, JSON, JSON lines or Parquet file to write rows to.

    A regular file appears at the end of the block, complete, or not at all. Missing values are
    empty; in CSV and TSV, values other than text are written as JSON.

    Args:
        path: The file, compressed if it ends in .gz, and no link; `-` is standard output, which
            needs a format.
        columns: Columns to write.
        format: A file ending such as csv; without it the name of the file decides.

    Raises:
        UsageError: The file cannot be written.
        RowError: The format cannot hold a row.
    """
    with open_sink(path, columns, detect_output_format(path, format)) as sink:
        yield sink


@contextmanager
def open_sink(path: Path | str, columns: Sequence[str], kind: str) -> Iterator[RowSink]:
    """Opens a file as `write_rows` does; `kind` is a format of the readers."""
    name = "standard output" if str(path) == "-" else str(path)
    with explain_write_errors(name), _open_output(path) as stream:
        sink: RowSink
        if kind == "parquet":
            from finetune.data.readers.parquet import ParquetSink

            sink = ParquetSink(stream, columns, name)
        else:
            sink = TextSink(stream, columns, name, kind)
        complete = False
        try:
            yield sink
            complete = True
        finally:
            sink.close(complete)


@contextmanager
def explain_write_errors(name: str) -> Iterator[None]:
    """Turns a system error of the block into a UsageError about the file; not a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what, cure = f"cannot be written: {error.strerror or error}", "Check space and permissions."
        raise UsageError(what, where=name, cure=cure) from error


@contextmanager
def _open_output(path: Path | str) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield cast(BinaryIO, _Terminal()) if sys.stdout.isatty() else sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    check_output(path)
    target = Path(path)
    if target.exists() and not target.is_file():
        # A device or a pipe cannot be replaced by a renamed file.
        with open(target, "wb") as stream:
            yield stream
        return
    partial = name_partial(target)
    try:
        with open(partial, "xb") as stream:
            if target.suffix == ".gz":
                with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as compressed:
                    yield cast(BinaryIO, compressed)
            else:
                yield stream
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class _Terminal:
    """Standard output of a person who looks at it: control characters are escaped."""

    def write(self, content: bytes) -> int:
        text = escape_controls(content.decode(errors="backslashreplace"))
        return sys.stdout.buffer.write(text.encode())

    def flush(self) -> None:
        sys.stdout.buffer.flush()


class TextSink:
    """Writes CSV or TSV with quotes where needed, JSON lines, or one JSON list.

    With `is_begun` the stream holds rows already.
    """

    def __init__(
        self,
        stream: BinaryIO,
        columns: Sequence[str],
        where: str,
        kind: str,
        *,
        is_begun: bool = False,
    ) -> None:
        self._stream, self._columns, self._where, self._kind = stream, columns, where, kind
        self._separator = ",\n" if is_begun else "["
        if kind in ("csv", "tsv") and not is_begun:
            self.write({name: name for name in columns})

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row."""
        self._stream.write(self._encode(row).encode())

    def flush(self) -> None:
        """Passes all rows on."""
        self._stream.flush()

    def close(self, complete: bool) -> None:
        """Writes the end of a JSON list."""
        if self._kind == "json" and complete:
            self._stream.write(b"[]\n" if self._separator == "[" else b"]\n")

    def _encode(self, row: Mapping[str, Any]) -> str:
        if self._kind in ("csv", "tsv"):
            fields = [_text(row.get(name)) for name in self._columns]
            return join_fields(fields, "," if self._kind == "csv" else "\t") + "\n"
        text = _as_json({name: row[name] for name in self._columns if name in row})
        if self._kind == "jsonl":
            return f"{text}\n"
        separator, self._separator = self._separator, ",\n"
        return f"{separator}{text}"


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    is_json = isinstance(value, bool | int | list | dict) or (
        isinstance(value, float) and math.isfinite(value)
    )
    return _as_json(value) if is_json else str(value)
