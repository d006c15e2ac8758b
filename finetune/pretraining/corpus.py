r"""Plain text as a stream of documents, in memory that does not grow with their size.

What is changed in a text, and nothing else: a byte order mark at its start is dropped, and the
line ends \r\n and \r become \n. With `unwrap`, a line break inside a paragraph becomes a blank
(after a hyphen or dash, nothing), see `unwrap`.
"""

import codecs
import glob
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from finetune.storage.files import open_input_file
from task_formats import UsageError

SUFFIXES = (".txt", ".gz", ".xz")
BLOCK = 2**20
"""Bytes read at a time; the longest line that is unwrapped, in characters."""
PIECE = 2**16
"""Characters of a piece of text, the most that is tokenised in one go."""

_WRAPPED, _FULL = range(50, 101), 0.6
# Where a pre-tokenizer of GPT-2's kind would part the text anyway, whatever stands around it.
_SEAM = re.compile(r"\S(?=\s\S)")


class Document(NamedTuple):
    """A text with a name for messages, in pieces that can be read once."""

    name: str
    pieces: Iterator[str]


def read_documents(paths: Sequence[str | Path], unwrapped: bool = False) -> Iterator[Document]:
    """One document per file, in the order of `paths`.

    Raises UsageError for a file that cannot be read, with the place of a byte that is not UTF-8.
    """
    for path in map(Path, paths):
        blocks = read_text(path)
        yield Document(str(path), cut_pieces(unwrap(blocks) if unwrapped else blocks))


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The files that paths, folders and globs name: each once, those of a pattern in order of name.

    Raises UsageError for a pattern that names none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = _match(pattern)
        if not matches:
            raise UsageError(
                f"no text files under {pattern!r}",
                cure=f"Give a folder that holds {', '.join(SUFFIXES)} files with --corpus FOLDER, "
                "or name files, folders or globs in the plan's corpus.",
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _match(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return sorted(file for file in inside if file.is_file())
    if path.is_file():
        return [path]
    names = glob.glob(str(path), recursive=True)
    return sorted(Path(name) for name in names if Path(name).is_file())


def fingerprint(paths: Iterable[str | Path]) -> str:
    """The sha256 over the contents of the files, names left out."""
    whole = hashlib.sha256()
    for path in paths:
        one = hashlib.sha256()
        with _reading(Path(path)), open_input_file(path) as file:
            while block := file.read(BLOCK):
                one.update(block)
        whole.update(one.digest())
    return whole.hexdigest()


def read_text(path: Path) -> Iterator[str]:
    """A file's text in blocks, decompressed by its suffix."""
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8-sig")(), translate=True
    )
    read = 0
    with _reading(path), open_input_file(path) as raw, _unpack(raw, path.suffix.lower()) as file:
        while block := file.read(BLOCK):
            if read == 0:
                _refuse_nul(block, path)
            read += len(block)
            yield _decode(decoder, block, path, read)
        yield _decode(decoder, b"", path, read, final=True)


def _refuse_nul(beginning: bytes, path: Path) -> None:
    """UsageError for what is no text, though all of it may be UTF-8: archives above all."""
    at = beginning.find(0)
    if at >= 0:
        raise UsageError(
            f"byte {at} is NUL, so this is no text",
            where=str(path),
            cure="Unpack an archive into a folder of texts, or leave the file out of the corpus.",
        )


def _decode(
    decoder: io.IncrementalNewlineDecoder, block: bytes, path: Path, read: int, final: bool = False
) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        byte, at = error.object[error.start], read - len(error.object) + error.start
        raise UsageError(
            f"byte {at} is {byte:#04x}, which is not UTF-8",
            where=str(path),
            cure="Convert the file to UTF-8, for example with iconv.",
        ) from error


def _unpack(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    return cast(BinaryIO, lzma.LZMAFile(raw)) if suffix == ".xz" else raw


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong while a file is read into one clear sentence."""
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot be read: {what}", where=str(path), cure="Replace the file."
        ) from error


def cut_pieces(blocks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """The same text in pieces of at most `size` characters, wherever the blocks ended.

    A piece ends before a blank between two words, so that byte-level BPE gives a piece the tokens
    it would have within the whole; in a text without blanks it ends anywhere.
    """
    rest = ""
    for block in blocks:
        rest += block
        while len(rest) > size + 1:
            seams = [match.end() for match in _SEAM.finditer(rest, max(size - 1000, 0), size + 2)]
            at = seams[-1] if seams else size
            yield rest[:at]
            rest = rest[at:]
    if rest:
        yield rest


def unwrap(blocks: Iterable[str]) -> Iterator[str]:
    """The text with the line breaks of a fixed-width page undone, if it seems to have them.

    It does when, over its first block, 95 % of the lines are no longer than W characters,
    W lies between 50 and 100, and half of the lines come to 0.6 · W or more. Then a line break
    goes where the next line's first word would not have fitted within W any more, or where a
    line of 0.6 · W or more is followed by a small letter; and where the next line is neither
    blank nor indented. So ends of paragraphs, headings and verse stay.
    """
    stream = iter(blocks)
    first = next(stream, "")
    width = wrap_width(first)
    rest = chain([first], stream)
    return rest if width is None else join_lines(rest, width)


def wrap_width(text: str) -> int | None:
    """The width W at which the lines of a text were wrapped; None where they were not."""
    lengths = sorted(len(line) for line in text.split("\n") if line.strip())
    if len(lengths) < 20:
        return None
    width, middle = lengths[int(0.95 * len(lengths))], lengths[len(lengths) // 2]
    return width if width in _WRAPPED and middle >= _FULL * width else None


def join_lines(blocks: Iterable[str], width: int) -> Iterator[str]:
    """The text with the breaks of lines wrapped at `width` undone, wherever the blocks ended."""
    carry = ""
    for block in blocks:
        *whole, partial = (carry + block).split("\n")
        # The last whole line waits for the next one to be known.
        carry = "\n".join([*whole[-1:], partial])
        yield "".join(a + _joint(a, b, width) for a, b in pairwise(whole))
        if len(carry) > BLOCK:
            yield carry
            carry = ""
    lines = carry.split("\n")
    yield "".join(a + _joint(a, b, width) for a, b in pairwise(lines)) + lines[-1]


def _joint(line: str, following: str, width: int) -> str:
    """What stands between two lines of a wrapped page."""
    words = following.split(maxsplit=1)
    if not line.strip() or not words or following[0].isspace():
        return "\n"
    length = len(line.rstrip())
    goes_on = following[0].islower() and length >= _FULL * width
    if not goes_on and length + 1 + len(words[0]) <= width:
        return "\n"
    return "" if line.endswith(("-", "—")) or line[-1].isspace() else " "
