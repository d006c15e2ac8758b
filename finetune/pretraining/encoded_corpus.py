"""Token ids of a corpus on disk: written once, then memory-mapped."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from finetune.progress import Progress
from finetune.storage.files import explain_os_errors, write_atomically
from finetune.storage.manifest import (
    Manifest,
    read_manifest,
    record_file,
    verify_files,
    write_manifest,
)
from task_formats import UsageError

TOKENS, STARTS, MANIFEST = "tokens.bin", "starts.bin", "corpus.json"
FORMAT = "gptft encoded corpus, version 3"
_PIECES_PER_CALL = 64


class EncodedCorpus(NamedTuple):
    """M documents; document d is `tokens[starts[d] : starts[d + 1] + 1]`."""

    tokens: np.ndarray
    """uint16, or uint32 for large vocabularies: all documents, with an end-of-text token before,
    between and after them."""
    starts: np.ndarray
    """(M + 1,) int64 positions of the end-of-text tokens."""
    text_bytes: int
    """UTF-8 bytes of the text, for bits per byte."""


def encode_corpus(
    documents: Iterable[Iterable[str]],
    tokenize: Callable[[Sequence[str]], Sequence[Sequence[int]]],
    folder: Path,
    *,
    key: str,
    vocabulary_size: int,
    end_id: int,
    total_bytes: int | None = None,
) -> EncodedCorpus:
    """Writes the tokens of a corpus to a folder, unless it contains them undamaged.

    Args:
        documents: The pieces of each document.
        tokenize: Token ids of several pieces.
        folder: Gets the tokens, the starts of documents and a manifest, which is written last.
        key: Identifies corpus and tokenizer.
        vocabulary_size: Token ids are below this.
        end_id: The end-of-text token.
        total_bytes: About how many bytes the corpus has, if known, for the progress.

    Raises:
        UsageError: The corpus has no text.
    """
    with suppress(UsageError):
        if read_manifest(folder / MANIFEST, FORMAT).metadata["key"] == key:
            return open_encoded_corpus(folder)
    dtype = np.dtype(np.uint16 if vocabulary_size <= 2**16 else np.uint32)
    starts, position, text_bytes = array("q"), 0, 0
    folder.mkdir(parents=True, exist_ok=True)
    with (
        explain_os_errors(folder),
        TemporaryDirectory(prefix=".", dir=folder) as temporary,
        Progress(f"encoding {folder.name}", total_bytes, "byte") as progress,
    ):
        with open(Path(temporary, TOKENS), "wb") as file:
            for text, starts_document, ids in _tokenize_pieces(documents, tokenize):
                if starts_document:
                    starts.append(position)
                tokens = np.array([end_id, *ids] if starts_document else ids, dtype)
                file.write(tokens.tobytes())
                position += len(tokens)
                size = len(text.encode())
                text_bytes += size
                progress.advance(size)
            if not starts:
                raise UsageError("the corpus has no text", cure="Check the files under corpus.")
            starts.append(position)
            file.write(np.array([end_id], dtype).tobytes())
            os.fsync(file.fileno())
        os.replace(file.name, folder / TOKENS)
    write_atomically(folder / STARTS, starts.tobytes())
    files = {name: record_file(folder / name) for name in (TOKENS, STARTS)}
    metadata = {"key": key, "dtype": dtype.name, "text_bytes": text_bytes}
    write_manifest(folder / MANIFEST, Manifest(FORMAT, files, metadata))
    return open_encoded_corpus(folder)


def open_encoded_corpus(folder: Path) -> EncodedCorpus:
    """Opens the tokens in a folder. Raises UsageError if a file is missing or damaged."""
    manifest = read_manifest(folder / MANIFEST, FORMAT)
    verify_files(folder, manifest)
    tokens = np.asarray(np.memmap(folder / TOKENS, manifest.metadata["dtype"], "r"))
    starts = np.fromfile(folder / STARTS, np.int64)
    return EncodedCorpus(tokens, starts, manifest.metadata["text_bytes"])


def _tokenize_pieces(
    documents: Iterable[Iterable[str]],
    tokenize: Callable[[Sequence[str]], Sequence[Sequence[int]]],
) -> Iterator[tuple[str, bool, Sequence[int]]]:
    """Yields each piece that is not empty, whether it starts a document, and its token ids."""
    pieces = (
        (piece, k == 0) for document in documents for k, piece in enumerate(filter(None, document))
    )
    while batch := list(islice(pieces, _PIECES_PER_CALL)):
        ids = tokenize([text for text, _ in batch])
        yield from ((*piece, tokens) for piece, tokens in zip(batch, ids, strict=True))
