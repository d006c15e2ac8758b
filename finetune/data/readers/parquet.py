"""Rows of Parquet files, read and written with pyarrow."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from finetune.data.readers.text import find_invalid_character, row_too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, LocatedRow, RowLocation
from task_formats import RowError, UsageError

_BATCH = 1000
_MAX_BATCH_BYTES = 2**28


def read_parquet(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields rows in batches; a null is None.

    Raises:
        UsageError: It is not a complete Parquet file, or has too many or equal columns.
    """
    if not stream.seekable():
        # The index is at the end of the file, so a pipe is copied first.
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            yield from read_parquet(copy, file)
        return
    try:
        table = parquet.ParquetFile(stream)
        if len(table.schema_arrow) > MAX_COLUMNS:
            raise UsageError(f"more than {MAX_COLUMNS:,} columns", where=file)
        if len(set(table.schema_arrow.names)) < len(table.schema_arrow):
            raise UsageError("two columns of one name", where=file, cure="Rename one of them.")
        before = 0
        for k in range(table.num_row_groups):
            size = _batch_size(table.metadata.row_group(k))
            for batch in table.iter_batches(batch_size=size, row_groups=[k]):
                yield from _rows(batch, file, before)
                before += batch.num_rows
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a complete Parquet file: {_first_line(error)}"
        cure = "Check that it is the right file and complete."
        raise UsageError(what, where=file, cure=cure) from None


def _batch_size(group: Any) -> int:
    """Rows per batch: a compressed group of some hundred bytes can hold a text a million times."""
    # The size of the whole group bounds every value. Sizes of single columns are not read:
    # pyarrow 26 crashes on files where they are invalid.
    return int(min(max(_MAX_BATCH_BYTES // max(group.total_byte_size, 1), 1), _BATCH))


def _rows(batch: Any, file: str, before: int) -> Iterator[LocatedRow]:
    for k in range(batch.num_rows) if batch.nbytes > MAX_ROW_BYTES else ():
        if batch.slice(k, 1).nbytes > MAX_ROW_BYTES:
            raise row_too_long(f"{file}, row {before + k + 1}")
    for number, row in enumerate(batch.to_pylist(), start=before + 1):
        location = RowLocation(file, number, "row")
        if find_invalid_character(row):
            yield location, RowError("a NUL", where=str(location), cure="Remove the character.")
        else:
            yield location, row


class ParquetSink:
    """Writes rows to a binary stream in batches; the first batch decides the types."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str) -> None:
        self._stream, self._columns, self._where = stream, tuple(columns), where
        self._pending: list[Mapping[str, Any]] = []
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        self._pending.append(row)
        if len(self._pending) == _BATCH:
            self._flush()

    def close(self, complete: bool) -> None:
        """Writes the last batch, unless an error ended the rows, and the index."""
        try:
            if complete and (self._pending or self._writer is None):
                self._flush()
        finally:
            # An open writer would write its index when Python collects it.
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
    """A column of nulls becomes text."""
    return array.cast(pyarrow.string()) if array.type == pyarrow.null() else array


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
