"""Reading rows from files and the hub, encoding them, and writing rows."""

from finetune.data.examples import (
    BadRow,
    LocatedExample,
    ReadReport,
    build_examples,
    read_examples,
)
from finetune.data.readers.files import FileRows, detect_format, open_file, read_rows
from finetune.data.rows import LocatedRow, RowLocation, Rows, locate_rows
from finetune.data.sources import open_rows
from finetune.data.token_store import TokenStore, encode_examples
from finetune.data.writers import name_columns, write_rows

__all__ = [
    "BadRow",
    "FileRows",
    "LocatedExample",
    "LocatedRow",
    "ReadReport",
    "RowLocation",
    "Rows",
    "TokenStore",
    "build_examples",
    "detect_format",
    "encode_examples",
    "locate_rows",
    "name_columns",
    "open_file",
    "open_rows",
    "read_examples",
    "read_rows",
    "write_rows",
]
