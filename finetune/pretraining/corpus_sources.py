"""From a plan's corpus part to documents: text files, rows of files, or a data set's split."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from finetune.data.readers.files import FORMATS
from finetune.data.rows import Rows
from finetune.data.sources import open_rows
from finetune.pretraining.corpus import (
    Document,
    cut_pieces,
    find_files,
    fingerprint,
    read_documents,
    unwrap,
)
from finetune.pretraining.plan import CorpusConfig
from finetune.recipe.schema import DataConfig
from task_formats import RowError, UsageError
from task_formats.templates import look_up


@dataclass(frozen=True)
class Corpus:
    """The texts of one split; its documents can be read again and again."""

    part: CorpusConfig
    files: tuple[Path, ...]
    """Plain text, a document each."""
    tables: tuple[Rows, ...]
    """Rows, a document each."""

    def read(self) -> Iterator[Document]:
        """All documents: the files in order, then the rows. RowError for a row without text."""
        yield from read_documents(self.files, self.part.unwrap)
        for rows in self.tables:
            for place, row in rows:
                yield Document(str(place), self._pieces(_text(row, self.part.column, str(place))))

    def _pieces(self, text: str) -> Iterator[str]:
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        return cut_pieces(unwrap([plain]) if self.part.unwrap else [plain])

    def fingerprint(self) -> str:
        """A sha256 over the contents and over how they are read."""
        parts = [fingerprint(self.files), *(rows.fingerprint() for rows in self.tables)]
        return sha256(f"{parts} {self.part.unwrap} {self.part.column}".encode()).hexdigest()


def open_corpus(part: CorpusConfig, names: tuple[str, ...]) -> Corpus:
    """The corpus that files, folders and globs name, or the splits of the part's data set.

    UsageError where there is no such file or split.
    """
    if part.path is not None:
        data = DataConfig(path=part.path, name=part.name, revision=part.revision)
        return Corpus(part, (), tuple(open_rows(data, split) for split in names))
    files = find_files(names)
    tables = tuple(open_rows(DataConfig(), str(path)) for path in files if _is_table(path))
    return Corpus(part, tuple(path for path in files if not _is_table(path)), tables)


def _is_table(path: Path) -> bool:
    """Whether a file holds rows. UsageError where they are packed as only texts may be."""
    name = path.name.lower()
    packed = name.endswith(".xz") and Path(name.removesuffix(".xz")).suffix in FORMATS
    if packed:
        what = "rows that are packed as .xz cannot be read"
        raise UsageError(what, where=str(path), cure="Unpack the file, or pack it as .gz.")
    return Path(name.removesuffix(".gz")).suffix in FORMATS


def _text(row: object, column: str, place: str) -> str:
    try:
        value = look_up(row, column)  # type: ignore[arg-type]
    except KeyError:
        value = None
    if not isinstance(value, str):
        raise RowError(
            f"no text in column {column!r}", where=place, cure="Set corpus.column to the text's."
        )
    # A lone surrogate, as JSON can spell it, has no UTF-8 and so no tokens.
    return value.encode("utf-8", "replace").decode()
