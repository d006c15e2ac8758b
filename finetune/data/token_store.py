"""Encoded examples as a few flat arrays, in memory or mapped from files."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple, cast, overload

import numpy as np
from numpy.typing import NDArray

from task_formats import Encoded, Label

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u4"),
    "segments": np.dtype("<i8"),
    "examples": np.dtype("<i8"),
    "labels": np.dtype("<f8"),
    "cuts": np.dtype("<i8"),
    "ids": np.dtype("u1"),
    "id_ends": np.dtype("<i8"),
}
"""Type of every array of a store, as its bytes stand in a file."""


class Arrays(NamedTuple):
    """N examples with S segments (a prefix and K endings each) of T tokens altogether."""

    tokens: Array
    """(T,) all tokens, segment after segment."""
    segments: Array
    """(S + 1,) where segments begin in `tokens`, and where the last one ends."""
    examples: Array
    """(N + 1,) where examples begin in `segments`; the first segment of each is its prefix."""
    labels: Array
    """(N,) NaN where unlabelled."""
    cuts: Array
    """(N,) tokens that truncation took away."""
    ids: Array
    """UTF-8 bytes of all ids."""
    id_ends: Array
    """(N + 1,) where ids begin in `ids`, and where the last one ends."""


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

    `whole` says that labels are whole numbers: classes or choices, not scores.
    """

    def __init__(self, arrays: Arrays, *, whole: bool) -> None:
        self.arrays, self.whole = arrays, whole

    def __len__(self) -> int:
        return len(self.arrays.labels)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self._encoded(k) for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._encoded(index % len(self))

    def __iter__(self) -> Iterator[Encoded]:
        return map(self._encoded, range(len(self)))

    def _encoded(self, k: int) -> Encoded:
        arrays = self.arrays
        first, end = arrays.examples[k], arrays.examples[k + 1]
        bounds = arrays.segments[first : end + 1].tolist()
        segments = [arrays.tokens[start:stop] for start, stop in pairwise(bounds)]
        # An array of whole numbers reads like a sequence of them, only without a copy.
        prefix, *endings = cast(list[Sequence[int]], segments)
        name = arrays.ids[arrays.id_ends[k] : arrays.id_ends[k + 1]].tobytes().decode()
        return Encoded(name, prefix, tuple(endings), self._label(k), int(arrays.cuts[k]))

    def _label(self, k: int) -> Label:
        value = float(self.arrays.labels[k])
        if np.isnan(value):
            return None
        return int(value) if self.whole else value

    @property
    def labels(self) -> Array:
        """(N,) float64; NaN where unlabelled."""
        return self.arrays.labels

    @property
    def lengths(self) -> Array:
        """(N,) tokens of every example, its prefix counted once."""
        return np.diff(self.arrays.segments[self.arrays.examples])

    @property
    def longest(self) -> Array:
        """(N,) tokens of every example's longest view."""
        sizes, begin = np.diff(self.arrays.segments), self.arrays.examples[:-1]
        prefixes = sizes[begin]
        sizes[begin] = 0
        return prefixes + np.maximum.reduceat(sizes, begin) if len(begin) else prefixes

    @property
    def views(self) -> Array:
        """(N,) views K of every example."""
        return np.diff(self.arrays.examples) - 1

    def select(self, rows: Sequence[int] | Array) -> "TokenStore":
        """The examples at some indices, in their order, copied into memory."""
        arrays, _ = flatten([self[int(k)] for k in rows], StoreOffsets())
        begin = {name: np.zeros(1, DTYPES[name]) for name in ("segments", "examples", "id_ends")}
        bounds = {name: np.concatenate([at, getattr(arrays, name)]) for name, at in begin.items()}
        return TokenStore(arrays._replace(**bounds), whole=self.whole)

    def compute_lengths(self) -> ExampleLengths:
        """Sizes of all examples, from the bounds of their segments."""
        return ExampleLengths(self.lengths, np.maximum(self.views, 1), self.longest)

    @property
    def cuts(self) -> Array:
        """(N,) tokens that truncation took from every example."""
        return self.arrays.cuts

    @property
    def cut(self) -> int:
        """Tokens that truncation took away altogether."""
        return int(self.arrays.cuts.sum())


class StoreOffsets(NamedTuple):
    """Where the arrays of the next batch begin."""

    tokens: int = 0
    segments: int = 0
    id_bytes: int = 0


def flatten(batch: Sequence[Encoded], totals: StoreOffsets) -> tuple[Arrays, StoreOffsets]:
    """What a batch adds to each array (to those of bounds: its ends), and the totals after it."""
    segments = [segment for item in batch for segment in (item.prefix, *item.endings)]
    ends = _ends(map(len, segments), len(segments), totals.tokens)
    names = [item.id.encode() for item in batch]
    id_ends = _ends(map(len, names), len(batch), totals.id_bytes)
    after = StoreOffsets(
        int(ends[-1]) if len(ends) else totals.tokens,
        totals.segments + len(segments),
        int(id_ends[-1]) if len(id_ends) else totals.id_bytes,
    )
    arrays = Arrays(
        tokens=np.fromiter(
            chain.from_iterable(segments), DTYPES["tokens"], after.tokens - totals.tokens
        ),
        segments=ends,
        examples=_ends((1 + len(item.endings) for item in batch), len(batch), totals.segments),
        labels=np.array(
            [np.nan if item.label is None else item.label for item in batch], DTYPES["labels"]
        ),
        cuts=np.array([item.truncated_tokens for item in batch], DTYPES["cuts"]),
        ids=np.frombuffer(b"".join(names), DTYPES["ids"]),
        id_ends=id_ends,
    )
    return arrays, after


def _ends(lengths: Iterable[int], count: int, start: int) -> Array:
    return start + np.cumsum(np.fromiter(lengths, np.int64, count), dtype=np.int64)
