"""Token ids of a corpus on disk: written shard by shard, then memory-mapped.

A folder holds tokens-*.npy (uint16, or uint32 for larger vocabularies), starts-*.npy (int64) and
the manifest shards.json, which is updated after every shard. The end-of-text token stands before,
between and after the documents: document d is `tokens[starts[d] : starts[d + 1] + 1]`.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from finetune.pretraining.corpus import Document
from finetune.storage.files import write_atomically
from finetune.storage.manifest import (
    FileRecord,
    Manifest,
    read_manifest,
    record_file,
    verify_files,
    write_manifest,
)
from task_formats import UsageError

MANIFEST = "shards.json"
FORMAT = "gptft token shards, version 2"
SHARD_TOKENS = 2**25
"""Approximate number of tokens in a shard."""
_PIECES_PER_CALL = 64

Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class ShardManifest:
    """What a folder contains so far, and how much of the corpus that is."""

    key: str
    """Identifies corpus and tokenizer."""
    vocabulary_size: int
    end_id: int
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    shard_tokens: tuple[int, ...] = ()
    """Tokens in each shard."""
    pieces: int = 0
    """Pieces of text that the shards contain."""
    text_bytes: int = 0
    """UTF-8 bytes of the text, for bits per byte."""
    complete: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(self.shard_tokens)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that holds every token id."""
        return np.uint16 if self.vocabulary_size <= 2**16 else np.uint32


class TokenShards:
    """The tokens of a folder."""

    def __init__(self, folder: Path, manifest: ShardManifest) -> None:
        self.manifest = manifest
        self._shards, starts = (
            [
                np.load(folder / _file_name(kind, n), mmap_mode="r", allow_pickle=False)
                for n in range(len(manifest.shard_tokens))
            ]
            for kind in ("tokens", "starts")
        )
        self._offsets = np.cumsum([0, *manifest.shard_tokens])
        self.starts: np.ndarray = np.concatenate(starts)
        """(M + 1,) int64 positions of the end-of-text tokens around M documents."""

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns (stop − start,) tokens; a view of the file if they lie in one shard."""
        first = int(np.searchsorted(self._offsets, start, "right")) - 1
        parts = []
        for shard, offset in zip(self._shards[first:], self._offsets[first:], strict=False):
            if offset >= stop:
                break
            parts.append(shard[max(start - offset, 0) : stop - offset])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def write_shards(
    documents: Iterable[Document],
    tokenize: Tokenize,
    folder: Path,
    start: ShardManifest,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenShards:
    """Writes the tokens of the documents into a folder.

    Undamaged shards of an earlier call with the same key, vocabulary and end-of-text token are
    kept; the result is the same, byte for byte.

    `start` is a manifest without files: key, vocabulary and end-of-text token. Raises UsageError
    for a corpus without text.
    """
    manifest = _resumable_manifest(folder, start)
    if not manifest.complete:
        for manifest in _write_shards(manifest, documents, tokenize, folder, shard_tokens):  # noqa: B020
            values = asdict(manifest)
            files = values.pop("files")
            write_manifest(folder / MANIFEST, Manifest(FORMAT, files, values))
    return TokenShards(folder, manifest)


def open_shards(folder: Path) -> TokenShards:
    """Opens the shards of a folder and checks every file against the manifest.

    Raises:
        UsageError: A file or the manifest is missing or damaged.
    """
    manifest = read_manifest(folder / MANIFEST, FORMAT)
    verify_files(folder, manifest)
    try:
        shard_tokens = tuple(manifest.metadata["shard_tokens"])
        values = {**manifest.metadata, "shard_tokens": shard_tokens}
        return TokenShards(folder, ShardManifest(files=manifest.files, **values))
    except (KeyError, TypeError) as error:
        raise UsageError("not a manifest of token shards", where=str(folder / MANIFEST)) from error


def _resumable_manifest(folder: Path, start: ShardManifest) -> ShardManifest:
    """The manifest of the folder if it continues `start` and is undamaged, or else `start`."""
    try:
        manifest = open_shards(folder).manifest
    except UsageError:
        return start
    key = (start.key, start.vocabulary_size, start.end_id)
    same = (manifest.key, manifest.vocabulary_size, manifest.end_id) == key
    return manifest if same else start


@dataclass
class _OpenShard:
    """A shard that is being filled."""

    position: int
    """Tokens of the corpus up to here."""
    tokens: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    pieces: int = 0
    text_bytes: int = 0

    def start_document(self, end: np.ndarray) -> None:
        """Adds an end-of-text token, after which a document starts."""
        self.starts.append(self.position)
        self.add(end)

    def add(self, tokens: np.ndarray) -> None:
        self.tokens.append(tokens)
        self.position += len(tokens)

    def write(self, folder: Path, manifest: ShardManifest) -> ShardManifest:
        """Writes the files of the shard; returns the manifest with them."""
        number, tokens = len(manifest.shard_tokens), np.concatenate(self.tokens)
        files = dict(manifest.files)
        arrays = {"tokens": tokens, "starts": np.array(self.starts, np.int64)}
        for kind, array in arrays.items():
            name, content = _file_name(kind, number), io.BytesIO()
            np.save(content, array, allow_pickle=False)
            write_atomically(folder / name, content.getvalue())
            files[name] = record_file(folder / name)
        return replace(
            manifest,
            files=files,
            shard_tokens=(*manifest.shard_tokens, len(tokens)),
            pieces=manifest.pieces + self.pieces,
            text_bytes=manifest.text_bytes + self.text_bytes,
        )


def _write_shards(
    manifest: ShardManifest,
    documents: Iterable[Document],
    tokenize: Tokenize,
    folder: Path,
    shard_tokens: int,
) -> Iterator[ShardManifest]:
    """Writes the missing shards; yields the manifest after each, the last one complete."""
    shard, end = _OpenShard(manifest.tokens), np.array([manifest.end_id], manifest.dtype)
    for text, starts_document, ids in _tokenize_pieces(documents, manifest.pieces, tokenize):
        if starts_document:
            shard.start_document(end)
        shard.add(np.array(ids, manifest.dtype))
        shard.pieces += 1
        shard.text_bytes += len(text.encode("utf-8"))
        if shard.position - manifest.tokens >= shard_tokens:
            manifest = shard.write(folder, manifest)
            shard = _OpenShard(manifest.tokens)
            yield manifest
    if not shard.position:
        raise UsageError("the corpus has no text", cure="Check the files under corpus.")
    shard.start_document(end)
    yield replace(shard.write(folder, manifest), complete=True)


def _tokenize_pieces(
    documents: Iterable[Document], skip: int, tokenize: Tokenize
) -> Iterator[tuple[str, bool, Sequence[int]]]:
    """The pieces of all documents but the first `skip`, whether they start one, and their ids."""
    all_pieces = (
        (piece, k == 0)
        for document in documents
        for k, piece in enumerate(filter(None, document.pieces))
    )
    pieces = islice(all_pieces, skip, None)
    while batch := list(islice(pieces, _PIECES_PER_CALL)):
        ids = tokenize([text for text, _ in batch])
        yield from ((*piece, tokens) for piece, tokens in zip(batch, ids, strict=True))


def _file_name(kind: str, shard: int) -> str:
    return f"{kind}-{shard:05}.npy"
