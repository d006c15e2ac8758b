r"""The corpus of a plan: files, rows or splits of a data set as a stream of documents.

Memory does not grow with the size of a text. Texts are changed only in this: a byte order mark at
the start is dropped, the line ends \r\n and \r become \n, and with `unwrap` wrapped lines are
joined.
"""

import codecs
import glob
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from finetune.data.readers.files import FORMATS
from finetune.data.readers.text import open_stream
from finetune.data.rows import Rows
from finetune.data.sources import open_rows
from finetune.pretraining.line_unwrapping import unwrap_lines
from finetune.pretraining.plan import CorpusConfig
from finetune.recipe.schema import DataConfig
from finetune.storage.files import hash_file, undecodable
from task_formats import RowError, UsageError
from task_formats.templates import look_up

SUFFIXES = (".txt", ".gz", ".xz")
"""Text files that are looked for in a folder."""
BLOCK = 2**20
"""Bytes read at a time."""
PIECE = 2**16
"""Maximum number of characters tokenized at once."""

# A place where GPT-2's pre-tokenizer splits in any context: before a blank between two words.
_SPLIT = re.compile(r"\S(?=\s\S)")


class Document(NamedTuple):
    """A text, in pieces that can be read once."""

    name: str
    """For messages."""
    pieces: Iterator[str]


@dataclass(frozen=True)
class Corpus:
    """The text of one split, readable any number of times."""

    config: CorpusConfig
    files: tuple[Path, ...]
    """Text files, one document each."""
    tables: tuple[Rows, ...]
    """Rows, one document each."""

    def read(self) -> Iterator[Document]:
        """Yields all documents: the files in order, then the rows.

        Raises:
            UsageError: A file cannot be read or is not UTF-8 text.
            RowError: A row has no text.
        """
        yield from read_documents(self.files, self.config.unwrap)
        for rows in self.tables:
            for location, row in rows:
                text = _read_column(row, self.config.column, str(location))
                text = text.replace("\r\n", "\n").replace("\r", "\n")
                yield Document(str(location), _make_pieces([text], self.config.unwrap))

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


def read_documents(paths: Sequence[str | Path], unwrap: bool = False) -> Iterator[Document]:
    """Yields one document for each text file."""
    for path in map(Path, paths):
        yield Document(str(path), _make_pieces(read_text(path), unwrap))


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
    """Whether a file holds rows; UsageError for rows in an .xz file."""
    name = path.name.lower()
    if name.endswith(".xz") and Path(name.removesuffix(".xz")).suffix in FORMATS:
        what = "rows cannot be read from .xz files"
        raise UsageError(what, where=str(path), cure="Unpack the file, or compress it as .gz.")
    return Path(name.removesuffix(".gz")).suffix in FORMATS


def fingerprint(paths: Iterable[str | Path]) -> str:
    """Returns a SHA-256 of the contents of files, in order and without their names."""
    digest = sha256()
    for path in paths:
        digest.update(bytes.fromhex(hash_file(Path(path).resolve())))
    return digest.hexdigest()


def read_text(path: Path) -> Iterator[str]:
    """Yields the text of a file in blocks; .gz and .xz files are decompressed.

    Raises:
        UsageError: The file cannot be read, is an archive or is not UTF-8 text.
    """
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8-sig")(), translate=True
    )
    line, column = 1, 0  # Of the start of the block; the column in bytes.
    block, first = b"x", True
    with open_stream(path) as stream:
        while block:
            block = stream.read(BLOCK)
            if first and (index := block.find(0)) >= 0:
                raise UsageError(
                    f"byte {index} is NUL, so this is not a text file",
                    where=str(path),
                    cure="Unpack archives into a folder of texts, or leave the file out.",
                )
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The decoder may have kept the first bytes of a character from the block before.
                start = column + len(block) - len(error.object)
                raise undecodable(error, str(path), line, start) from None
            line += block.count(b"\n")
            end = block.rfind(b"\n")
            column = column + len(block) if end < 0 else len(block) - end - 1
            first = False


def _make_pieces(blocks: Iterable[str], unwrap: bool) -> Iterator[str]:
    return cut_pieces(unwrap_lines(blocks) if unwrap else blocks)


def cut_pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """Yields the text in pieces of at most `size` + 1 characters, wherever the blocks end.

    A piece ends before a blank between two words, so byte-level BPE gives it the same tokens as
    within the whole text. In a text without blanks it ends anywhere.
    """
    text = ""
    for block in blocks:
        text += block
        while len(text) > size + 1:
            ends = [match.end() for match in _SPLIT.finditer(text, max(size - 1000, 0), size + 2)]
            end = ends[-1] if ends else size
            yield text[:end]
            text = text[end:]
    if text:
        yield text


def _read_column(row: Any, column: str, location: str) -> str:
    try:
        value = look_up(row, column)
    except KeyError:
        value = None
    if not isinstance(value, str):
        cure = "Set corpus.column to the column with the text."
        raise RowError(f"no text in column {column!r}", where=location, cure=cure)
    # A lone surrogate, which JSON can contain, has no UTF-8 and so no tokens.
    return value.encode("utf-8", "replace").decode()
