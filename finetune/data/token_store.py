"""Encoded examples as a few flat arrays, in memory or mapped from files."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from task_formats import Encoded, Example, Label, ViewEncoder

Array = NDArray[Any]
_Item = TypeVar("_Item")

_BATCH = 1000
"""Examples that are encoded at once."""


class Arrays(NamedTuple):
    """N examples with S segments (a prefix and K endings each) of T tokens in all."""

    tokens: Array
    """(T,) all tokens, segment after segment."""
    segments: Array
    """(S + 1,) where segments begin in `tokens`, and the end of the last one."""
    examples: Array
    """(N + 1,) where examples begin in `segments`; the first segment of each is its prefix."""
    labels: Array
    """(N,) NaN where unlabelled."""
    truncated_tokens: Array
    """(N,) tokens that truncation removed."""
    ids: Array
    """UTF-8 bytes of all ids."""
    id_bounds: Array
    """(N + 1,) where ids begin in `ids`, and the end of the last one."""


DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u4"),
    "segments": np.dtype("<i8"),
    "examples": np.dtype("<i8"),
    "labels": np.dtype("<f8"),
    "truncated_tokens": np.dtype("<i8"),
    "ids": np.dtype("u1"),
    "id_bounds": np.dtype("<i8"),
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
    """N encoded examples; an item is an Encoded whose token sequences are views of one array.

    Args:
        arrays: The tokens and where segments, examples and ids begin.
        integer_labels: Whether labels are classes or choices, not scores.
    """

    def __init__(self, arrays: Arrays, *, integer_labels: bool) -> None:
        self.arrays, self.integer_labels = arrays, integer_labels

    def __len__(self) -> int:
        return len(self.arrays.labels)

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
        return Encoded(name, prefix, tuple(endings), self._label(n), truncated)

    def _label(self, n: int) -> Label:
        value = float(self.arrays.labels[n])
        if np.isnan(value):
            return None
        return int(value) if self.integer_labels else value

    @property
    def labels(self) -> Array:
        """(N,) float64; NaN where unlabelled."""
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
        store = _store(_batches(self[int(n)] for n in indices))
        return TokenStore(store.arrays, integer_labels=self.integer_labels)


def encode_examples(examples: Iterable[Example], encoder: ViewEncoder) -> TokenStore:
    """Encodes examples into memory: what `encoder.encode` returns, in the same order."""
    return _store(map(encoder.encode, _batches(examples)))


def write_examples(
    examples: Iterable[Example], encoder: ViewEncoder, streams: Mapping[str, BinaryIO]
) -> bool:
    """Encodes examples into binary streams, one for each array; returns `integer_labels`."""
    return _write(map(encoder.encode, _batches(examples)), streams)


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


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
        write("labels", np.array([np.nan if label is None else label for label in labels]))
        write("truncated_tokens", np.array([item.truncated_tokens for item in batch]))
        write("ids", np.frombuffer(b"".join(ids), np.uint8))
        write_ends("id_bounds", list(map(len, ids)))
    return integer_labels
