"""Rows from files and from the hub, examples out of them, their encodings, and rows to files."""

from finetune.data.encoding_cache import encode_examples
from finetune.data.examples import BadRow, ReadReport, read_examples
from finetune.data.readers.files import FileRows, detect_format, open_file, read_rows
from finetune.data.rows import RowLocation, Rows
from finetune.data.sources import open_rows
from finetune.data.token_store import TokenStore
from finetune.data.writers import PredictionColumns, RowSink, name_columns, write_rows

__all__ = [
    "BadRow",
    "FileRows",
    "PredictionColumns",
    "ReadReport",
    "RowLocation",
    "RowSink",
    "Rows",
    "TokenStore",
    "detect_format",
    "encode_examples",
    "name_columns",
    "open_file",
    "open_rows",
    "read_examples",
    "read_rows",
    "write_rows",
]
