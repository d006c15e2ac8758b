"""Rows from files and from the hub, examples out of them, their encodings, and rows to files."""

from finetune.data.encoding_cache import prepare
from finetune.data.examples import BadRow, Report, read_examples
from finetune.data.readers.files import FileRows, format_of, open_file, read_rows
from finetune.data.rows import Place, Rows
from finetune.data.sources import open_rows
from finetune.data.token_store import EncodedStore
from finetune.data.writers import PredictionColumns, Sink, name_columns, write_rows

__all__ = [
    "BadRow",
    "EncodedStore",
    "FileRows",
    "Place",
    "PredictionColumns",
    "Report",
    "Rows",
    "Sink",
    "format_of",
    "name_columns",
    "open_file",
    "open_rows",
    "prepare",
    "read_examples",
    "read_rows",
    "write_rows",
]
