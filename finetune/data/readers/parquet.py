"""Rows of Parquet and Arrow files, read and written with pyarrow."""

import gzip
import io
import json
import lzma
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from pyarrow import ipc, parquet

from finetune.data.chunks import CHUNK_BYTES, memory_size
from finetune.data.readers.text import find_invalid_character, first_line, peek, row_too_long
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, LocatedRow, RowLocation
from task_formats import RowError, UsageError

_READ_BATCH = 100
"""Rows in memory: a file of some hundred bytes can hold a long text a million times."""
_WRITE_BATCH = 1024
"""Rows in a group of a file: as many as are predicted at once."""
_MAX_PIPE_BYTES = 2**30
"""Bytes that are read from a pipe, or from a compressed file."""
_MAGIC, _FILE_MAGIC = b"PAR1", b"ARROW1"
"""The first bytes of a Parquet file, and of an Arrow file that is no stream."""


def read_parquet(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields rows in batches; a null is None.

    Raises:
        UsageError: It is not a complete Parquet file, or has too many or equal columns.
    """
    with _explain_errors(file, "Parquet"):
        table = parquet.ParquetFile(_seekable(stream, file, _MAGIC, "Parquet"))
        _check_columns(table.schema_arrow, file)
        yield from _read_batches(table.iter_batches(_READ_BATCH), file)


def read_arrow(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields rows of an Arrow IPC file or stream, as `datasets` and Feather write them.

    Raises:
        UsageError: It is not a complete Arrow file, or has too many or equal columns.
    """
    with _explain_errors(file, "Arrow"):
        schema, batches = _open_arrow(stream, file)
        _check_columns(schema, file)
        yield from _read_batches(_slice(batches), file)


def read_class_names(stream: BinaryIO, file: str, format: str) -> dict[str, list[str]]:
    """Returns column to names of its classes, which `datasets` keeps in the schema."""
    with _explain_errors(file, format.title()):
        if format == "parquet":
            source = _seekable(stream, file, _MAGIC, "Parquet")
            schema = parquet.read_schema(source)
        else:
            schema, _ = _open_arrow(stream, file)
        metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(metadata)["info"]["features"]
        found = {name: _find_names(feature) for name, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if names}


def count_parquet_rows(stream: BinaryIO) -> int | None:
    """Returns the number of rows from the index of a file; None if it is damaged."""
    try:
        return int(parquet.read_metadata(stream).num_rows)
    except pyarrow.ArrowException:
        return None


def _find_names(feature: Any) -> list[str]:
    """The names of a ClassLabel, or of the items of a list of them."""
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    feature = feature.get("feature", feature)
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return list(map(str, names or ()))


def _open_arrow(stream: BinaryIO, file: str) -> tuple[Any, Iterator[Any]]:
    start = peek(stream, len(_FILE_MAGIC))
    if start != _FILE_MAGIC:
        reader = ipc.open_stream(stream)
        return reader.schema, iter(reader)
    table = ipc.open_file(_seekable(stream, file, _FILE_MAGIC, "Arrow"))
    return table.schema, (table.get_batch(k) for k in range(table.num_record_batches))


def _slice(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _READ_BATCH):
            yield batch.slice(start, _READ_BATCH)


def _check_columns(schema: Any, file: str) -> None:
    if len(schema.names) > MAX_COLUMNS:
        raise UsageError(f"more than {MAX_COLUMNS:,} columns", where=file)
    if len(set(schema.names)) < len(schema.names):
        raise UsageError("two columns of one name", where=file, cure="Rename one of them.")


def _read_batches(batches: Iterable[Any], file: str) -> Iterator[LocatedRow]:
    number = 0
    for batch in batches:
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


@contextmanager
def _explain_errors(file: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        what = f"not a complete {kind} file: {first_line(error)}"
        raise UsageError(what, where=file, cure="Check that it is the right file.") from None


def _seekable(stream: BinaryIO, file: str, magic: bytes, kind: str) -> BinaryIO:
    """A stream itself, or in memory if it is a pipe or compressed: the index is at the end."""
    if stream.seekable() and not isinstance(stream, gzip.GzipFile | lzma.LZMAFile):
        return stream
    start = stream.read(len(magic))
    content = start + stream.read(_MAX_PIPE_BYTES) if start == magic else start
    if len(content) > _MAX_PIPE_BYTES:
        what = f"more than {_MAX_PIPE_BYTES:,} bytes of {kind} that cannot be searched"
        raise UsageError(what, where=file, cure="Save it as a file that is not compressed.")
    return io.BytesIO(content)


class _BatchSink(ABC):
    """Writes rows to a binary stream in batches."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str) -> None:
        self._stream, self._batches = stream, _Batches(columns, where)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        if self._batches.add(row):
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait for a batch."""
        if self._batches.count:
            self._write(self._batches.take())

    @abstractmethod
    def _write(self, table: Any) -> None:
        """Writes a batch."""


class ParquetSink(_BatchSink):
    """Writes rows to a binary stream in batches; the first batch decides the types."""

    def __init__(self, stream: BinaryIO, columns: Sequence[str], where: str) -> None:
        super().__init__(stream, columns, where)
        self._writer: Any = None

    def _write(self, table: Any) -> None:
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._stream, table.schema)
        self._writer.write_table(table)

    def close(self, complete: bool) -> None:
        """Writes the last batch, unless an error ended the rows, and the index."""
        try:
            if complete and (self._batches.count or self._writer is None):
                self._write(self._batches.take())
        finally:
            # An open writer would write its index when Python collects it.
            if self._writer is not None:
                self._writer.close()


class ArrowSink(_BatchSink):
    """Writes rows as an Arrow stream, which can be gone on with, unlike a Parquet file.

    Args:
        stream: Takes bytes.
        columns: Columns to write.
        where: The name of the output, for messages.
        begun: A file with the beginning of the stream, which is gone on with.
    """

    def __init__(
        self, stream: BinaryIO, columns: Sequence[str], where: str, begun: Path | None = None
    ) -> None:
        super().__init__(stream, columns, where)
        if begun:
            with pyarrow.OSFile(str(begun)) as file:
                self._batches.schema = pyarrow.ipc.open_stream(file).schema
        self._has_types = begun is not None

    def _write(self, table: Any) -> None:
        if not self._has_types:
            self._stream.write(table.schema.serialize().to_pybytes())
            self._has_types = True
        for batch in table.to_batches():
            self._stream.write(batch.serialize().to_pybytes())

    def close(self, complete: bool) -> None:
        """Writes the last batch, unless an error ended the rows."""
        if complete and (self._batches.count or not self._has_types):
            self._write(self._batches.take())


def convert_arrow_stream(source: Path, target: Path) -> None:
    """Writes an Arrow stream as a new Parquet file, a row group for each batch."""
    with pyarrow.OSFile(str(source)) as file:
        batches = pyarrow.ipc.open_stream(file)
        with open(target, "xb") as stream, parquet.ParquetWriter(stream, batches.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)


class _Batches:
    """Collects rows until they make a batch; the first one decides the types."""

    def __init__(self, columns: Sequence[str], where: str) -> None:
        self._columns, self._where = tuple(columns), where
        self._rows: list[Mapping[str, Any]] = []
        self._bytes = 0
        self.schema: Any = None

    @property
    def count(self) -> int:
        """Rows that wait."""
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Adds a row and returns whether the batch is full."""
        self._rows.append(row)
        self._bytes += memory_size(row)
        return len(self._rows) == _WRITE_BATCH or self._bytes >= CHUNK_BYTES

    def take(self) -> Any:
        """Returns the table of the collected rows."""
        rows, self._rows, self._bytes = self._rows, [], 0
        arrays = []
        try:
            for name in self._columns:
                known = self.schema.field(name).type if self.schema else None
                array = pyarrow.array([row.get(name) for row in rows], known)
                # A column of nulls becomes text.
                arrays.append(
                    array.cast(pyarrow.string()) if array.type == pyarrow.null() else array
                )
        except (pyarrow.ArrowException, UnicodeEncodeError) as error:
            what = f"a column holds values of several types: {first_line(error)}"
            raise UsageError(what, where=self._where, cure="Write .jsonl instead.") from None
        table = pyarrow.table(arrays, self._columns)
        self.schema = table.schema if self.schema is None else self.schema
        return table
