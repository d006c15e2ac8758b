"""Rows of Parquet files, in and out: the one door to pyarrow."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from finetune.data.readers.text import too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, RowLocation, Scanned
from task_formats import RowError, UsageError

_BATCH = 1000
_ROOM = 2**28
"""Bytes that a batch may take."""


def scan_parquet(stream: BinaryIO, file: str) -> Iterator[Scanned]:
    """Rows of a Parquet file, a batch at a time; a null is None."""
    with _seekable(stream) as source:
        yield from _scan(source, file)


def _scan(source: BinaryIO, file: str) -> Iterator[Scanned]:
    try:
        table = parquet.ParquetFile(source)
        if len(table.schema_arrow) > MAX_COLUMNS:
            raise UsageError(f"more than {MAX_COLUMNS:,} columns", where=file)
        if len(set(table.schema_arrow.names)) < len(table.schema_arrow):
            raise UsageError("two columns of one name", where=file, cure="Rename one of them.")
        before = 0
        for k in range(table.num_row_groups):
            size = _batch_size(table.metadata.row_group(k))
            for batch in table.iter_batches(batch_size=size, row_groups=[k]):
                _check_length(batch, file, before)
                yield from _rows(batch, file, before)
                before += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a whole Parquet file: {_first_line(error)}"
        raise UsageError(what, where=file, cure="Is it the right file, and whole?") from None


def _batch_size(group: Any) -> int:
    """Rows that are read at once: some hundred bytes can hold one text for a million rows."""
    # No value is larger than all that is stored. (Not column by column: pyarrow 26 ends the process
    # where a column's own numbers make no sense.)
    return int(min(max(_ROOM // max(group.total_byte_size, 1), 1), _BATCH))


def _check_length(batch: Any, file: str, before: int) -> None:
    if batch.nbytes > MAX_ROW_BYTES:
        sizes = (batch.slice(k, 1).nbytes for k in range(batch.num_rows))
        for k, size in enumerate(sizes, start=before + 1):
            if size > MAX_ROW_BYTES:
                raise too_long(f"{file}, row {k}")


def _rows(batch: Any, file: str, before: int) -> Iterator[Scanned]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_row(batch.slice(k, 1)) for k in range(batch.num_rows)]
    for k, row in enumerate(rows, start=before + 1):
        place = RowLocation(file, k, "row")
        if row is None or _has_nul(row):
            what = "bytes that are not UTF-8" if row is None else "a NUL"
            yield place, RowError(what, where=str(place), cure="Write the text as UTF-8.")
        else:
            yield place, row


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(map(_has_nul, (*value, *value.values())))
    return isinstance(value, list | tuple) and any(map(_has_nul, value))


def _row(batch: Any) -> dict[str, Any] | None:
    try:
        return dict(batch.to_pylist()[0])
    except UnicodeDecodeError:
        return None


@contextmanager
def _seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """A pipe's bytes in a temporary file: the index of a Parquet file stands at its end."""
    if stream.seekable():
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
        yield copy


class ParquetSink:
    """Writes rows to a binary stream in batches; the first batch settles the types."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str) -> None:
        self._stream, self._columns, self._where = stream, tuple(columns), where
        self._pending: list[Mapping[str, Any]] = []
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self._pending.append(row)
        if len(self._pending) == _BATCH:
            self._flush()

    def close(self, whole: bool) -> None:
        """Write what is left, unless the rows ended with a failure, and the index."""
        try:
            if whole and (self._pending or self._writer is None):
                self._flush()
        finally:
            # Left open it would write its index when Python collects it.
            if self._writer is not None:
                self._writer.close()

    def _flush(self) -> None:
        rows, self._pending = self._pending, []
        schema = self._writer.schema if self._writer else None
        try:
            arrays = [
                pyarrow.array([row.get(name) for row in rows], schema and schema.field(name).type)
                for name in self._columns
            ]
        except (pyarrow.ArrowException, UnicodeEncodeError) as error:
            what = f"a column holds values of several types: {_first_line(error)}"
            raise UsageError(what, where=self._where, cure="Write .jsonl instead.") from None
        table = pyarrow.table([_typed(array) for array in arrays], self._columns)
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._stream, table.schema)
        self._writer.write_table(table)


def _typed(array: Any) -> Any:
    """A column of nulls is taken for text."""
    return array.cast(pyarrow.string()) if array.type == pyarrow.null() else array


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
