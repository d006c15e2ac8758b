"""Encoded examples as a few flat arrays, in memory or mapped from files of a cache."""

import gc
import hashlib
import io
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, cast, overload

import numpy as np
from numpy.typing import NDArray

from finetune.data.chunks import example_size, split_into_chunks
from finetune.data.examples import BadRow, ReadReport
from finetune.data.rows import RowLocation
from finetune.storage.cache import enforce_limit_once, mark_used
from finetune.storage.manifest import (
    Manifest,
    read_manifest,
    record_file,
    verify_files,
    write_manifest,
)
from task_formats import Encoded, Example, Label, RenderedBatch, ViewEncoder

FORMAT = "gptft encoded examples, version 5"
"""Its version is raised when the files of an entry change, or what the readers read."""

Array = NDArray[Any]

_COUNTS = ("rows", "unlabelled", "more_skipped", "is_drawn")
"""Fields of a read report that are saved as they are."""
_ATTEMPTS = 3

_BATCH, _BATCH_BYTES = 2000, 2**22
"""Examples that are encoded at once, and bytes of their texts: tokenizing needs much more."""
_TOKENIZED_AHEAD = 2
"""Batches that are tokenized, or wait for it, while others are read and written."""


class Arrays(NamedTuple):
    """N examples with S segments (a prefix and K endings each) of T tokens in all."""

    tokens: Array
    """(T,) all tokens, segment after segment."""
    segments: Array
    """(S + 1,) where segments begin in `tokens`, and the end of the last one."""
    examples: Array
    """(N + 1,) where examples begin in `segments`; the first segment of each is its prefix."""
    labels: Array
    """(N,) or, for several labels at once, (N, C); NaN where unlabelled."""
    truncated_tokens: Array
    """(N,) tokens that truncation removed."""
    windows: Array
    """(N,) windows in which each example is read."""
    ids: Array
    """UTF-8 bytes of all ids."""
    id_bounds: Array
    """(N + 1,) where ids begin in `ids`, and the end of the last one."""


DTYPES: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(Arrays._fields, np.dtype("<i8")),
    "tokens": np.dtype("<u4"),
    "labels": np.dtype("<f8"),
    "ids": np.dtype("u1"),
}
"""Type of every array, in memory and in a file."""


class ExampleLengths(NamedTuple):
    """Sizes of N examples, by which forward passes are planned."""

    tokens: Array
    """(N,) tokens of each example, its prefix counted once."""
    views: Array
    """(N,) views K; 1 where there are no endings."""
    longest: Array
    """(N,) tokens of the longest view."""


def compute_lengths(examples: Sequence[Encoded]) -> ExampleLengths:
    """Sizes of N encoded examples; a collection that knows them reads no tokens."""
    if known := getattr(examples, "compute_lengths", None):
        return cast(ExampleLengths, known())
    sizes = [
        (e.tokens, max(len(e.endings), 1), len(e.prefix) + max(map(len, e.endings), default=0))
        for e in examples
    ]
    return ExampleLengths(*np.array(sizes, dtype=np.int64).reshape(-1, 3).T)


class TokenStore(Sequence[Encoded]):
    """N encoded examples; an item is an Encoded whose token sequences are views of one array."""

    def __init__(self, arrays: Arrays, *, integer_labels: bool) -> None:
        rows = len(arrays.truncated_tokens)
        if len(arrays.labels) > rows:
            arrays = arrays._replace(labels=arrays.labels.reshape(rows, -1))
        self.arrays = arrays
        self.integer_labels = integer_labels  # Labels are classes or choices, not scores.

    def __len__(self) -> int:
        return len(self.arrays.truncated_tokens)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self._encoded(n) for n in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._encoded(index % len(self))

    def __iter__(self) -> Iterator[Encoded]:
        return map(self._encoded, range(len(self)))

    def _encoded(self, n: int) -> Encoded:
        arrays = self.arrays
        first, end = arrays.examples[n], arrays.examples[n + 1]
        bounds = arrays.segments[first : end + 1].tolist()
        segments = [arrays.tokens[start:stop] for start, stop in pairwise(bounds)]
        # An array of integers can be read like a sequence of them, without a copy.
        prefix, *endings = cast(list[Sequence[int]], segments)
        name = arrays.ids[arrays.id_bounds[n] : arrays.id_bounds[n + 1]].tobytes().decode()
        truncated = int(arrays.truncated_tokens[n])
        windows = int(self.arrays.windows[n])
        return Encoded(name, prefix, tuple(endings), self._label(n), truncated, windows)

    def _label(self, n: int) -> Label:
        label = self.arrays.labels[n]
        if label.ndim:
            return None if np.isnan(label[0]) else tuple(label.tolist())
        if np.isnan(label):
            return None
        return int(label) if self.integer_labels else float(label)

    @property
    def labels(self) -> Array:
        """(N,) or, for several labels at once, (N, C) float64; NaN where unlabelled."""
        return self.arrays.labels

    def compute_lengths(self) -> ExampleLengths:
        """Sizes of all examples, from the bounds of their segments."""
        segments, first = np.diff(self.arrays.segments), self.arrays.examples[:-1]
        tokens = np.diff(self.arrays.segments[self.arrays.examples])
        views = np.maximum(np.diff(self.arrays.examples) - 1, 1)
        prefixes = segments[first]
        segments[first] = 0
        endings = np.maximum.reduceat(segments, first) if len(first) else prefixes
        return ExampleLengths(tokens, views, prefixes + endings)

    def select(self, indices: Iterable[int]) -> "TokenStore":
        """Returns the examples at some indices, in their order, copied into memory."""
        rows = list(map(int, indices))
        batches = ([self[n] for n in rows[k : k + _BATCH]] for k in range(0, len(rows), _BATCH))
        store = _store(batches)
        return TokenStore(store.arrays, integer_labels=self.integer_labels)


def class_indices(labels: Array) -> Array:
    """Returns the (N,) classes of labels; of (N, C) probabilities the most probable one."""
    return labels if labels.ndim == 1 else labels.argmax(axis=1)


def count_shared(examples: TokenStore, others: TokenStore) -> int:
    """Counts the examples whose tokens are also those of one of the others."""

    def contents(store: TokenStore) -> Iterator[bytes]:
        bounds = store.arrays.segments[store.arrays.examples].tolist()
        return (store.arrays.tokens[start:stop].tobytes() for start, stop in pairwise(bounds))

    known = set(map(hash, contents(others)))
    return sum(hash(content) in known for content in contents(examples))


def is_unlabelled(labels: Array) -> Array:
    """(N,) booleans from the labels of a store."""
    first: Array = labels if labels.ndim == 1 else labels[:, 0]
    return np.isnan(first)


def encode_examples(examples: Iterable[Example], encoder: ViewEncoder) -> TokenStore:
    """Encodes examples into memory: what `encoder.encode` returns, in the same order."""
    return _store(_encode_ahead(examples, encoder))


def _encode_ahead(examples: Iterable[Example], encoder: ViewEncoder) -> Iterator[list[Encoded]]:
    """Encodes batches. Only the tokenizer, which needs no lock of Python, has its own thread."""
    waiting: deque[tuple[RenderedBatch, Future[Sequence[Sequence[int]]]]] = deque()

    def assemble_first() -> list[Encoded]:
        batch, tokens = waiting.popleft()
        return encoder.assemble(batch, tokens.result())

    with ThreadPoolExecutor(1) as thread, _frozen_heap():
        for chunk in split_into_chunks(examples, _BATCH, example_size, _BATCH_BYTES):
            batch = encoder.render(chunk)
            waiting.append((batch, thread.submit(encoder.tokenize, batch.texts)))
            if len(waiting) > _TOKENIZED_AHEAD:
                yield assemble_first()
        while waiting:
            yield assemble_first()


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Hides what is in memory from the garbage collector.

    It would search all of it every few thousand rows: a tenth of the time where torch is loaded.
    """
    if gc.get_freeze_count():  # By the program, or another thread; unfreezing would undo it.
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _store(batches: Iterable[Sequence[Encoded]]) -> TokenStore:
    streams = {name: io.BytesIO() for name in DTYPES}
    integer_labels = _write(batches, streams)
    arrays = {name: np.frombuffer(streams[name].getbuffer(), DTYPES[name]) for name in DTYPES}
    return TokenStore(Arrays(**arrays), integer_labels=integer_labels)


def _write(batches: Iterable[Sequence[Encoded]], streams: Mapping[str, BinaryIO]) -> bool:
    ends = {"segments": 0, "examples": 0, "id_bounds": 0}
    integer_labels = True

    def write(name: str, values: Array) -> None:
        streams[name].write(values.astype(DTYPES[name], copy=False).tobytes())

    def write_ends(name: str, lengths: Sequence[int]) -> None:
        bounds = ends[name] + np.cumsum(lengths, dtype=np.int64)
        ends[name] = int(bounds[-1])
        write(name, bounds)

    # Rows without a label are as wide as the others, whose width the first labelled row tells.
    width, pending = 0, 0

    def write_labels(labels: Sequence[Label]) -> None:
        nonlocal width, pending
        known = next((label for label in labels if label is not None), None)
        if not width and known is None:
            pending += len(labels)
            return
        width = width or (len(known) if isinstance(known, tuple) else 1)
        missing = (np.nan,) * width if width > 1 else np.nan
        write("labels", np.full(pending * width, np.nan))
        write("labels", np.array([missing if label is None else label for label in labels]))
        pending = 0

    for name in ends:
        write(name, np.zeros(1))
    for batch in batches:
        segments = [segment for item in batch for segment in (item.prefix, *item.endings)]
        lengths, ids = list(map(len, segments)), [item.id.encode() for item in batch]
        labels = [item.label for item in batch]
        integer_labels &= all(isinstance(label, int | None) for label in labels)
        tokens = np.fromiter(chain.from_iterable(segments), DTYPES["tokens"], sum(lengths))
        write("tokens", tokens)
        write_ends("segments", lengths)
        write_ends("examples", [1 + len(item.endings) for item in batch])
        write_labels(labels)
        write("truncated_tokens", np.array([item.truncated_tokens for item in batch]))
        write("windows", np.array([item.windows for item in batch]))
        write("ids", np.frombuffer(b"".join(ids), np.uint8))
        write_ends("id_bounds", list(map(len, ids)))
    write("labels", np.full(pending, np.nan))
    return integer_labels


ReadExamples = Callable[[], tuple[Iterable[Example], ReadReport]]
"""Starts to read: the examples, and the report that is filled while they are read."""


def load_or_encode(
    read: ReadExamples, encoder: ViewEncoder, cache: Path | None, key: str
) -> tuple[TokenStore, ReadReport]:
    """Returns encoded examples, mapped from files in the cache, and the report of their reading.

    The first call encodes the examples; the next call with the same key reads none of them. A
    damaged entry is replaced. An entry is a folder: a file for each array, and a manifest with
    their hashes, the kind of label and the report. Several processes may use the cache at once.
    If it cannot be written, the examples are encoded into memory, and the report says why. The
    least recently used entries are deleted where all together would be too large.

    Args:
        read: Called once or more, for all examples from the first.
        encoder: Encodes them.
        cache: The folder of all entries; None if there is no place for one.
        key: Everything the result depends on: contents, task, tokenizer and limits.
    """
    if cache is None:
        return _encode_without_cache(read, encoder, "there is no home folder")
    folder = cache / hashlib.sha256(f"{FORMAT}\n{key}".encode()).hexdigest()[:32]
    reason = "other processes keep changing it"
    # Another process may replace or delete an entry between two steps.
    for _ in range(_ATTEMPTS):
        with suppress(OSError, ValueError, KeyError, TypeError):
            loaded = _load(folder)
            mark_used(folder)
            return loaded
        shutil.rmtree(folder, ignore_errors=True)  # It is damaged, or does not exist.
        try:
            _encode_into(folder, read, encoder)
            enforce_limit_once(cache, keep=folder)
        except OSError as error:
            reason = error.strerror or str(error)
            break
    return _encode_without_cache(read, encoder, f"{cache}: {reason}")


def _encode_without_cache(
    read: ReadExamples, encoder: ViewEncoder, reason: str
) -> tuple[TokenStore, ReadReport]:
    examples, report = read()
    store = encode_examples(examples, encoder)
    report.cache_error = f"{reason}. Set GPTFT_CACHE to another folder"
    return store, report


def _encode_into(folder: Path, read: ReadExamples, encoder: ViewEncoder) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        prefix=f"{folder.name}.partial-", dir=folder.parent, ignore_cleanup_errors=True
    ) as partial:
        examples, report = read()
        _save(Path(partial, "entry"), examples, encoder, report)
        with suppress(OSError):  # Another process may have been faster.
            Path(partial, "entry").rename(folder)


def _save(
    folder: Path, examples: Iterable[Example], encoder: ViewEncoder, report: ReadReport
) -> None:
    folder.mkdir()
    with ExitStack() as stack:
        streams = {name: stack.enter_context(open(folder / name, "wb")) for name in DTYPES}
        integer_labels = _write(_encode_ahead(examples, encoder), streams)
    # Not flushed to the disk: what a power failure damages, the hashes find.
    records = {name: record_file(folder / name) for name in DTYPES}
    skipped = [[*bad.location, bad.id, bad.reason] for bad in report.skipped]
    saved = {name: getattr(report, name) for name in _COUNTS} | {"skipped": skipped}
    metadata = {"integer_labels": integer_labels, "report": saved}
    write_manifest(folder / "manifest.json", Manifest(FORMAT, records, metadata))


def _load(folder: Path) -> tuple[TokenStore, ReadReport]:
    """Maps an entry and reads its report; an error if any part is missing or damaged."""
    manifest = read_manifest(folder / "manifest.json", FORMAT)
    verify_files(folder, manifest)
    arrays = {name: _map(folder / name, DTYPES[name]) for name in DTYPES}
    saved = manifest.metadata["report"]
    skipped = [BadRow(RowLocation(*place), name, why) for *place, name, why in saved["skipped"]]
    report = ReadReport(skipped, **{name: saved[name] for name in _COUNTS})
    integer_labels = bool(manifest.metadata["integer_labels"])
    return TokenStore(Arrays(**arrays), integer_labels=integer_labels), report


def _map(path: Path, dtype: np.dtype[Any]) -> Array:
    if not path.stat().st_size:
        return np.empty(0, dtype)
    # A plain array over the map: slices of np.memmap itself are several times slower.
    return np.asarray(np.memmap(path, dtype, mode="r"))
