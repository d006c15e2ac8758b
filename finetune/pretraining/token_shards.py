"""Tokens of a corpus on disk: written once, piece by piece, and then mapped into memory.

A folder holds `tokens-*.npy` (uint16, or uint32 where the vocabulary needs it), `starts-*.npy`
(int64) and `shards.json`, which names them with sizes and hashes and is written after them. The
documents stand one after another with the end-of-text token before, between and after them:
document d is `tokens[starts[d] : starts[d + 1] + 1]`.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.pretraining.corpus import Document
from finetune.storage.files import hash_file, read_regular_file, safe_join, write_atomically
from finetune.storage.json_files import decode, encode
from task_formats import UsageError

MANIFEST, VERSION = "shards.json", 1
SHARD = 2**25
"""Tokens in a shard, about."""
_AT_ONCE = 64

Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]


class StoredFile(NamedTuple):
    """One file of the folder."""

    name: str
    size: int
    sha256: str


class Shard(NamedTuple):
    """What one step of writing added to the folder."""

    tokens: StoredFile
    starts: StoredFile
    length: int
    """Tokens in it."""


@dataclass(frozen=True)
class ShardManifest:
    """What the folder holds so far, and how much of the corpus went into it."""

    key: str
    vocabulary: int
    end: int
    shards: tuple[Shard, ...] = ()
    pieces: int = 0
    text_bytes: int = 0
    """UTF-8 bytes of the text: what bits per byte are counted over."""
    complete: bool = False
    version: int = field(default=VERSION)

    @property
    def count(self) -> int:
        """Tokens in all."""
        return sum(shard.length for shard in self.shards)

    @property
    def files(self) -> list[StoredFile]:
        """Every file but the manifest itself."""
        return [stored for shard in self.shards for stored in (shard.tokens, shard.starts)]

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest type that holds every token."""
        return np.uint16 if self.vocabulary <= 2**16 else np.uint32


class TokenShards:
    """The tokens of a finished folder. N tokens, M documents."""

    def __init__(self, folder: Path, manifest: ShardManifest) -> None:
        self.manifest = manifest
        self._parts = [_map(folder, shard.tokens) for shard in manifest.shards]
        counts = [shard.length for shard in manifest.shards]
        self._offsets = np.cumsum([0, *counts])
        parts = [_map(folder, shard.starts) for shard in manifest.shards]
        self.starts: np.ndarray = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        """(M + 1,) int64: where each document's first end-of-text stands, and the last one."""

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return len(self.starts) - 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop − start,) tokens, a view of the disk where one shard holds them all."""
        first = int(np.searchsorted(self._offsets, start, "right")) - 1
        parts = []
        for part, offset in zip(self._parts[first:], self._offsets[first:], strict=False):
            if offset >= stop:
                break
            parts.append(part[max(start - offset, 0) : stop - offset])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def write_shards(
    documents: Iterable[Document],
    tokenize: Tokenize,
    folder: Path,
    start: ShardManifest,
    size: int = SHARD,
) -> TokenShards:
    """The tokens of the documents in `folder`; `start` says for which key, vocabulary and end.

    What an interrupted call with the same key left there is used again, if it is undamaged, and
    the result is byte for byte the same. Raises UsageError for a corpus without text.
    """
    found = _usable(folder, start)
    if not found.complete:
        for found in _extend(found, documents, tokenize, folder, size):  # noqa: B020
            write_atomically(folder / MANIFEST, encode(asdict(found), indent=1))
    return TokenShards(folder, found)


def open_shards(folder: Path) -> TokenShards:
    """The finished shards of a folder, every byte checked against its manifest."""
    manifest = read_manifest(folder)
    damaged = [stored.name for stored in manifest.files if not _whole(folder, stored)]
    if damaged or not manifest.complete:
        what = f"{damaged[0]} is damaged or missing" if damaged else "the shards are unfinished"
        raise UsageError(what, where=str(folder), cure="Remove the folder and start again.")
    return TokenShards(folder, manifest)


def read_manifest(folder: Path) -> ShardManifest:
    """The manifest of a folder; UsageError where it is missing or not what we write."""
    path = folder / MANIFEST
    try:
        found = decode(read_regular_file(path), str(path))
        shards = tuple(
            Shard(StoredFile(**shard["tokens"]), StoredFile(**shard["starts"]), shard["length"])
            for shard in found.pop("shards")
        )
        manifest = ShardManifest(**{**found, "shards": shards})
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "not a manifest of shards", where=str(path), cure="Remove the folder."
        ) from error
    if manifest.version != VERSION:
        raise UsageError(f"version {manifest.version}, not {VERSION}", where=str(path))
    return manifest


def _usable(folder: Path, start: ShardManifest) -> ShardManifest:
    """The manifest to go on from: the folder's own if it is for the same job and undamaged."""
    try:
        found = read_manifest(folder)
    except UsageError:
        return start
    same = (found.key, found.vocabulary, found.end) == (start.key, start.vocabulary, start.end)
    return found if same and all(_whole(folder, stored) for stored in found.files) else start


class _Piece(NamedTuple):
    text: str
    first: bool
    """True where a document begins."""


@dataclass
class _Open:
    """A shard that is being filled, at place `at` of the whole."""

    at: int
    tokens: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    pieces: int = 0
    text_bytes: int = 0

    def begin(self, end: np.ndarray) -> None:
        """A document begins here."""
        self.starts.append(self.at)
        self.add(end)

    def add(self, tokens: np.ndarray) -> None:
        self.tokens.append(tokens)
        self.at += len(tokens)

    def close(self, done: ShardManifest, folder: Path, complete: bool = False) -> ShardManifest:
        """Writes the shard; gives the manifest that knows it."""
        number, joined = len(done.shards), np.concatenate(self.tokens)
        shard = Shard(
            _store(folder, f"tokens-{number:05}.npy", joined),
            _store(folder, f"starts-{number:05}.npy", np.array(self.starts, np.int64)),
            len(joined),
        )
        return replace(
            done,
            shards=(*done.shards, shard),
            pieces=done.pieces + self.pieces,
            text_bytes=done.text_bytes + self.text_bytes,
            complete=complete,
        )


def _extend(
    done: ShardManifest, documents: Iterable[Document], tokenize: Tokenize, folder: Path, size: int
) -> Iterator[ShardManifest]:
    """Writes shard after shard; yields the manifest with each, the last one complete."""
    shard, end = _Open(done.count), np.array([done.end], done.dtype)
    for piece, ids in _tokenized(islice(_pieces(documents), done.pieces, None), tokenize):
        if piece.first:
            shard.begin(end)
        shard.add(np.array(ids, done.dtype))
        shard.pieces += 1
        shard.text_bytes += len(piece.text.encode("utf-8"))
        if shard.at - done.count >= size:
            done = shard.close(done, folder)
            shard = _Open(done.count)
            yield done
    if not shard.at:
        raise UsageError("the corpus holds no text", cure="Check the files under corpus.")
    shard.begin(end)
    yield shard.close(done, folder, complete=True)


def _pieces(documents: Iterable[Document]) -> Iterator[_Piece]:
    """All pieces of all documents; a document without text has none."""
    for document in documents:
        pieces = (piece for piece in document.pieces if piece)
        yield from (_Piece(piece, k == 0) for k, piece in enumerate(pieces))


def _tokenized(
    pieces: Iterator[_Piece], tokenize: Tokenize
) -> Iterator[tuple[_Piece, Sequence[int]]]:
    while batch := list(islice(pieces, _AT_ONCE)):
        yield from zip(batch, tokenize([piece.text for piece in batch]), strict=True)


def _store(folder: Path, name: str, array: np.ndarray) -> StoredFile:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_atomically(folder / name, content.getvalue())
    return StoredFile(name, len(content.getvalue()), hash_file(folder / name))


def _whole(folder: Path, stored: StoredFile) -> bool:
    """True when the file is there with the size and hash it was written with."""
    path = safe_join(folder, stored.name)
    try:
        return path.stat().st_size == stored.size and hash_file(path) == stored.sha256
    except (OSError, UsageError):
        return False


def _map(folder: Path, stored: StoredFile) -> np.ndarray:
    return np.load(safe_join(folder, stored.name), mmap_mode="r", allow_pickle=False)
