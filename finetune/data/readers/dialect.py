"""How a CSV or TSV file is written: its delimiter and quotes, found from the file itself."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import BinaryIO, NamedTuple

from finetune.data.readers.text import as_utf8, detect_encoding, peek
from finetune.data.rows import MAX_ROW_BYTES, ReadOptions

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_OWN = {"csv": ",", "tsv": "\t"}
_NAMED = re.compile(r"sep=([^\w\s\"]|\t)\r?\n", re.I)
_HEADER_BYTES = 2**16
_MAX_BYTES = 2**30
"""Bytes that are searched for quotes, as standard input may never end."""


class Dialect(NamedTuple):
    """The delimiter of a file, and whether quotes are those of CSV or part of the text."""

    delimiter: str
    has_quotes: bool
    has_blanks: bool = False
    """Whether a blank follows every delimiter."""
    is_named: bool = False
    """Whether the first line names the delimiter, as Excel writes it: sep=;"""

    def describe(self, format: str) -> str:
        """Says what the ending of the file does not; empty if there is nothing to say."""
        notes = []
        if self.delimiter != _OWN[format]:
            name = _DELIMITERS.get(self.delimiter, repr(self.delimiter))
            notes.append(f"{name} between the columns")
        if self.has_quotes and self.delimiter == "\t":
            notes.append("quotes as in CSV")
        return " and ".join(notes)


def detect_dialect(stream: BinaryIO, options: ReadOptions) -> Dialect:
    """Finds the dialect of a file; the stream is then read from where it was.

    Another delimiter than the format's own is one that the header and the first row hold equally
    often, if the header does not hold the format's own. Quotes between tabs are those of CSV only
    if the whole file could have been written so; GLUE's files have quotes that mean nothing.
    """
    delimiter = options.delimiter or _OWN[options.format]
    start = peek(stream, _HEADER_BYTES).decode("utf-8-sig", "replace")
    if named := _NAMED.match(start):
        delimiter = options.delimiter or named[1]
        return Dialect(delimiter, True, is_named=True)
    # Detection sees the beginning of a file, whose last line may be cut.
    lines = [f"{line}\n" for line in start.split("\n") if line.strip("\r")]
    is_known = options.delimiter or options.columns
    if not is_known and lines and _count_fields(lines, delimiter, records=1) == 1:
        counts = {other: _count_fields(lines, other) for other in _DELIMITERS}
        best = max(counts, key=counts.__getitem__)
        delimiter = best if counts[best] > 1 else delimiter
    if delimiter == "\t":
        return Dialect(delimiter, _has_quotes(stream))
    return Dialect(delimiter, True, _has_blanks(lines, delimiter))


def _count_fields(lines: Iterable[str], delimiter: str, records: int = 2) -> int:
    """Fields of the header, if the first `records` lines have equally many; else 1."""
    try:
        found = csv.reader(lines, delimiter=delimiter, strict=True)
        widths = [len(fields) for fields in islice(found, records)]
    except csv.Error:
        return 1
    return widths[0] if len(set(widths)) == 1 else 1


def _has_blanks(lines: Iterable[str], delimiter: str) -> bool:
    """Whether a blank follows every delimiter in the header and the first row."""
    try:
        records = [*islice(csv.reader(lines, delimiter=delimiter), 2)]
    except csv.Error:
        return False
    others = [field for fields in records for field in fields[1:]]
    return bool(others) and all(field.startswith(" ") for field in others)


def _has_quotes(stream: BinaryIO) -> bool:
    """Whether a file with tabs between its fields is quoted as CSV."""
    if not stream.seekable():
        content = peek(stream, _HEADER_BYTES)
        return b'"' in content and _is_quoted(io.BytesIO(content[: content.rfind(b"\n") + 1]))
    position = stream.tell()
    chunks = islice(iter(lambda: stream.read(2**20), b""), _MAX_BYTES // 2**20)
    found = any(b'"' in chunk for chunk in chunks)
    stream.seek(position)
    if found:
        found = _is_quoted(stream)
        stream.seek(position)
    return found


def _is_quoted(stream: BinaryIO) -> bool:
    """Whether a writer of CSV would have quoted the same fields, or all texts are quoted."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    record: list[str] = []

    def texts() -> Iterator[str]:
        size = 0
        for raw in iter(lambda: stream.readline(MAX_ROW_BYTES), b""):
            size = size + len(raw) if record else len(raw)
            if size > MAX_ROW_BYTES:
                raise csv.Error("a quote that is never closed")
            record.append(raw.decode("utf-8-sig", "replace"))
            yield record[-1]

    everything, width = None, 0
    try:
        for fields in csv.reader(texts(), delimiter="\t", strict=True):
            text = "".join(record).rstrip("\r\n")
            record.clear()
            width = width or len(fields)
            if everything is None:
                everything = text.startswith('"')
            # A record without quotes is as a writer leaves it: the usual case, and quickly seen.
            is_written = (
                everything or '"' not in text or text in (join_fields(fields, "\t"), _write(fields))
            )
            if fields and (len(fields) != width or not is_written):
                return False
    except csv.Error:
        return False
    return True


def join_fields(fields: Sequence[str], delimiter: str) -> str:
    """Returns a line of CSV that the readers take apart into the same fields.

    Not csv.writer: it leaves a lone carriage return bare, which readers take for a line end.
    """
    special = f'{delimiter}"\r\n'
    if len(fields) == 1:
        # An empty line is no row, and the delimiter is sought in a line without the usual one.
        special += "".join(_DELIMITERS)
        if fields[0] == "":
            return '""'
    return delimiter.join(_quote(text, special) for text in fields)


def _quote(text: str, special: str) -> str:
    # A blank after a delimiter may belong to the delimiter.
    if text.startswith(" ") or not set(special).isdisjoint(text):
        return '"' + text.replace('"', '""') + '"'
    return text


def _write(fields: list[str]) -> str:
    """The line of csv.writer, which pandas uses."""
    output = io.StringIO()
    csv.writer(output, delimiter="\t", lineterminator="\n").writerow(fields)
    return output.getvalue().removesuffix("\n")


def describe_text(stream: BinaryIO, file: str, options: ReadOptions) -> str:
    """Says how a text file is written, if its ending does not; else nothing."""
    notes = []
    encoding = options.encoding or detect_encoding(stream)
    if options.format in _OWN:
        dialect = detect_dialect(as_utf8(stream, file, encoding), options)
        notes.append(dialect.describe(options.format))
    if not encoding.lower().startswith("utf-8"):
        notes.append(f"encoding {encoding}")
    if options.header is False and not options.columns:
        notes.append("no header")
    return ", ".join(filter(None, notes))
