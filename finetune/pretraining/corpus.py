r"""The corpus of a plan: files, rows or splits of a data set as a stream of documents.

Memory does not grow with the size of a text, only with that of its longest line. Texts are changed
only in this: a byte order mark at the start is dropped, the line ends \r\n and \r become \n, and
with `unwrap` wrapped lines are joined.
"""

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from finetune.data.readers.files import FORMATS
from finetune.data.readers.text import open_stream
from finetune.data.rows import Rows
from finetune.data.sources import open_rows
from finetune.pretraining.plan import CorpusConfig
from finetune.recipe.schema import DataConfig
from finetune.storage.files import hash_file, undecodable
from task_formats import RowError, UsageError
from task_formats.templates import look_up

SUFFIXES = (".txt", ".gz", ".xz")
"""Text files that are looked for in a folder."""
BLOCK = 2**20
"""Approximate number of bytes read at a time."""
PIECE = 2**16
"""Maximum number of characters tokenized at once."""

# A place where GPT-2's pre-tokenizer splits in any context: before a blank between two words.
_SPLIT = re.compile(r"\S(?=\s\S)")
_WIDTHS, _FULL = range(50, 101), 0.6


@dataclass(frozen=True)
class Corpus:
    """The text of one split, readable any number of times."""

    config: CorpusConfig
    files: tuple[Path, ...]
    """Text files, one document each."""
    tables: tuple[Rows, ...]
    """Rows, one document each."""

    def read(self) -> Iterator[Iterator[str]]:
        """Yields all documents in pieces: the files in order, then the rows.

        Raises:
            UsageError: A file cannot be read or is not UTF-8 text.
            RowError: A row has no text.
        """
        for path in self.files:
            yield make_pieces(read_text(path), self.config.unwrap)
        for rows in self.tables:
            for location, row in rows:
                text = _read_column(row, self.config.column, str(location))
                yield make_pieces([_unify_line_ends(text)], self.config.unwrap)

    def estimate_bytes(self) -> int | None:
        """Returns about how many bytes the text has; None for tables and compressed files."""
        if self.tables or any(path.suffix in (".gz", ".xz") for path in self.files):
            return None
        return sum(path.stat().st_size for path in self.files)

    def fingerprint(self) -> str:
        """Returns a SHA-256 of the contents and of how they are read."""
        parts = [fingerprint(self.files), *(rows.fingerprint() for rows in self.tables)]
        return sha256(f"{parts} {self.config.unwrap} {self.config.column}".encode()).hexdigest()


def open_corpus(config: CorpusConfig, names: Sequence[str]) -> Corpus:
    """Opens the files, folders and globs with these names, or the splits of the plan's data set.

    Raises:
        UsageError: There is no such file or split.
    """
    if config.path is not None:
        data = DataConfig(path=config.path, name=config.name, revision=config.revision)
        return Corpus(config, (), tuple(open_rows(data, split) for split in names))
    files = find_files(names)
    tables = tuple(open_rows(DataConfig(), str(path)) for path in files if _has_rows(path))
    return Corpus(config, tuple(path for path in files if not _has_rows(path)), tables)


def find_files(patterns: Iterable[str]) -> list[Path]:
    """Returns the files under paths, folders and globs, each once; those of a pattern are sorted.

    Raises:
        UsageError: A pattern matches no file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = _match(pattern)
        if not matches:
            raise UsageError(
                f"no text files under {pattern!r}",
                cure=f"Give a folder that holds {', '.join(SUFFIXES)} files with --corpus FOLDER, "
                "or name files, folders or globs in the plan's corpus.",
            )
        files.update(dict.fromkeys(matches))
    return list(files)


def _match(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        paths = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES]
    else:
        paths = [Path(name) for name in glob.glob(str(path), recursive=True)]
    return sorted(path for path in paths if path.is_file())


def _has_rows(path: Path) -> bool:
    return Path(re.sub(r"\.(gz|xz)$", "", path.name.lower())).suffix in FORMATS


def fingerprint(paths: Iterable[str | Path]) -> str:
    """Returns a SHA-256 of the contents of files, in order and without their names."""
    digest = sha256()
    for path in paths:
        digest.update(bytes.fromhex(hash_file(Path(path).resolve())))
    return digest.hexdigest()


def read_text(path: Path) -> Iterator[str]:
    """Yields the text of a file in blocks of whole lines; .gz and .xz files are decompressed.

    Raises:
        UsageError: The file cannot be read, is an archive or is not UTF-8 text.
    """
    line = 1
    with open_stream(path) as stream:
        while lines := stream.readlines(BLOCK):
            content = b"".join(lines)
            if line == 1 and (index := content.find(0)) >= 0:
                what = f"byte {index} is NUL, so this is not a text file"
                cure = "Unpack archives into a folder of texts, or leave the file out."
                raise UsageError(what, where=str(path), cure=cure)
            try:
                text = content.decode("utf-8-sig" if line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise undecodable(error, str(path), line) from None
            yield _unify_line_ends(text)
            line += len(lines)


def _unify_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def make_pieces(blocks: Iterable[str], unwrap: bool) -> Iterator[str]:
    """Yields the pieces of a document, with `unwrap` after joining its wrapped lines."""
    return cut_pieces(unwrap_lines(blocks) if unwrap else blocks)


def cut_pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Yields the text in pieces of at most `size` + 1 characters, wherever the blocks end.

    A piece ends before a blank between two words, so byte-level BPE gives it the same tokens as
    within the whole text. In a text without blanks it ends anywhere.
    """
    text = ""
    for block in blocks:
        text, start = text + block, 0
        while len(text) - start > size + 1:
            window = _SPLIT.finditer(text, start + max(size - 1000, 0), start + size + 2)
            end = max((match.end() for match in window), default=start + size)
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def unwrap_lines(blocks: Iterable[str]) -> Iterator[str]:
    """Joins the lines of each paragraph if the text seems to be wrapped at a fixed width W.

    It does when, in its first block, 95 % of the lines have at most W characters, W lies between
    50 and 100, and half of the lines have at least 0.6 · W. Then two lines are joined if the first
    word of the second would not have fitted within W, or if the first has at least 0.6 · W
    characters and the second begins with a small letter. Blank and indented lines are not joined,
    so paragraphs, headings and verse stay.
    """
    blocks = iter(blocks)
    first = next(blocks, "")
    width = detect_width(first)
    text = chain([first], blocks)
    return text if width is None else join_lines(text, width)


def detect_width(text: str) -> int | None:
    """Returns the width W at which the lines of a text were wrapped; None if they were not."""
    lengths = sorted(len(line) for line in text.split("\n") if line.strip())
    if len(lengths) < 20:
        return None
    width, middle = lengths[int(0.95 * len(lengths))], lengths[len(lengths) // 2]
    return width if width in _WIDTHS and middle >= _FULL * width else None


def join_lines(blocks: Iterable[str], width: int) -> Iterator[str]:
    """Joins lines wrapped at `width`; the result does not depend on where the blocks end."""
    pending = ""
    for block in blocks:
        *complete, partial = (pending + block).split("\n")
        # The last complete line waits until the next one is known.
        pending = "\n".join([*complete[-1:], partial])
        yield "".join(line + _separator(line, after, width) for line, after in pairwise(complete))
    lines = pending.split("\n")
    yield "".join(line + _separator(line, after, width) for line, after in pairwise(lines))
    yield lines[-1]


def _separator(line: str, after: str, width: int) -> str:
    """The text between a line and the one after it."""
    words = after.split(maxsplit=1)
    if not line.strip() or not words or after[0].isspace():
        return "\n"
    length = len(line.rstrip())
    continues = after[0].islower() and length >= _FULL * width
    if not continues and length + 1 + len(words[0]) <= width:
        return "\n"
    return "" if line.endswith(("-", "—")) or line[-1].isspace() else " "


def _read_column(row: Any, column: str, location: str) -> str:
    try:
        value = look_up(row, column)
    except KeyError:
        value = None
    if not isinstance(value, str):
        cure = "Set corpus.column to the column with the text."
        raise RowError(f"no text in column {column!r}", where=location, cure=cure)
    return value
