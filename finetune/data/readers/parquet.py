"""Rows of Parquet files, read and written with pyarrow."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from finetune.data.readers.text import find_invalid_character, first_line, row_too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, LocatedRow, RowLocation
from finetune.data.windows import WINDOW_BYTES, memory_size
from task_formats import RowError, UsageError

_READ_BATCH = 100
"""Rows in memory: a file of some hundred bytes can hold a long text a million times."""
_WRITE_BATCH = 1000
_MAX_PIPE_BYTES = 2**30
"""Bytes that are read from a pipe."""
_MAGIC = b"PAR1"
"""The first bytes of a Parquet file."""


def read_parquet(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields rows in batches; a null is None.

    Raises:
        UsageError: It is not a complete Parquet file, or has too many or equal columns.
    """
    try:
        table = parquet.ParquetFile(stream if stream.seekable() else _read_pipe(stream, file))
        names = table.schema_arrow.names
        if len(names) > MAX_COLUMNS:
            raise UsageError(f"more than {MAX_COLUMNS:,} columns", where=file)
        if len(set(names)) < len(names):
            raise UsageError("two columns of one name", where=file, cure="Rename one of them.")
        number = 0
        for batch in table.iter_batches(_READ_BATCH):
            is_large = batch.nbytes > MAX_ROW_BYTES
            for k, row in enumerate(batch.to_pylist()):
                number += 1
                location = RowLocation(file, number, "row")
                if is_large and batch.slice(k, 1).nbytes > MAX_ROW_BYTES:
                    raise row_too_long(str(location))
                if find_invalid_character(row):
                    yield location, RowError("a NUL", where=str(location), cure="Remove it.")
                else:
                    yield location, row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a complete Parquet file: {first_line(error)}"
        raise UsageError(what, where=file, cure="Check that it is the right file.") from None


def _read_pipe(stream: BinaryIO, file: str) -> BinaryIO:
    """A pipe as a file in memory: the index of a Parquet file is at its end."""
    start = stream.read(len(_MAGIC))
    content = start + stream.read(_MAX_PIPE_BYTES) if start == _MAGIC else start
    if len(content) > _MAX_PIPE_BYTES:
        what = f"more than {_MAX_PIPE_BYTES:,} bytes of Parquet from a pipe"
        raise UsageError(what, where=file, cure="Save it as a file, and name that file.")
    return io.BytesIO(content)


class ParquetSink:
    """Writes rows to a binary stream in batches; the first batch decides the types."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str) -> None:
        self._stream, self._columns, self._where = stream, tuple(columns), where
        self._pending: list[Mapping[str, Any]] = []
        self._pending_bytes = 0
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        self._pending.append(row)
        self._pending_bytes += memory_size(row)
        if len(self._pending) == _WRITE_BATCH or self._pending_bytes >= WINDOW_BYTES:
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
        rows, self._pending, self._pending_bytes = self._pending, [], 0
        arrays = []
        try:
            for name in self._columns:
                known = self._writer.schema.field(name).type if self._writer else None
                array = pyarrow.array([row.get(name) for row in rows], known)
                # A column of nulls becomes text.
                arrays.append(
                    array.cast(pyarrow.string()) if array.type == pyarrow.null() else array
                )
        except (pyarrow.ArrowException, UnicodeEncodeError) as error:
            what = f"a column holds values of several types: {first_line(error)}"
            raise UsageError(what, where=self._where, cure="Write .jsonl instead.") from None
        table = pyarrow.table(arrays, self._columns)
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._stream, table.schema)
        self._writer.write_table(table)
