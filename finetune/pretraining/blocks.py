"""A corpus as examples without endings: what the shared loop reads in pre-training."""

from collections.abc import Iterator, Sequence
from typing import cast, overload

import numpy as np

from finetune.data.token_store import ExampleLengths
from finetune.pretraining.token_shards import TokenShards
from task_formats import Encoded, UsageError


class TokenBlocks(Sequence[Encoded]):
    """Stretches of at most `context` tokens that together predict every token exactly once.

    A document of n + 1 tokens gives ⌈n / (context − 1)⌉ blocks of nearly equal length; each
    begins with the token the one before ended with, and the first with the end-of-text token.
    No block crosses a document, unless `mix_documents` cuts all of them laid end to end.
    """

    def __init__(
        self, shards: TokenShards, context: int, split: str, mix_documents: bool = False
    ) -> None:
        if context < 2:
            raise UsageError(
                f"a context of {context} tokens has nothing to predict",
                where="train.context",
                cure="Take 2 or more.",
            )
        self._shards, self._split = shards, split
        self._starts = shards.starts[[0, -1]] if mix_documents else shards.starts
        targets = np.diff(self._starts)
        self._ends = np.cumsum(-(-targets // (context - 1)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def targets(self) -> int:
        """Tokens that are predicted: all but the very first."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | Sequence[Encoded]:
        """One block as `Encoded(prefix=tokens, endings=())`; a slice gives a list."""
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        first, last = (int(bound[0]) for bound in self._bounds(np.array([place])))
        tokens = cast(Sequence[int], self._shards.read(first, last + 1))
        return Encoded(f"{self._split}/{place}", tokens, ())

    def __iter__(self) -> Iterator[Encoded]:
        return (self[n] for n in range(len(self)))

    def compute_lengths(self) -> ExampleLengths:
        """The sizes of all blocks, without reading one."""
        first, last = self._bounds(np.arange(len(self)))
        return ExampleLengths(last - first + 1, np.ones_like(first), last - first + 1)

    def _bounds(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last token of blocks: two arrays as long as `index`."""
        document = np.searchsorted(self._ends, index, "right")
        before = np.where(document > 0, self._ends[document - 1], 0)
        count, start = self._ends[document] - before, self._starts[document]
        targets = self._starts[document + 1] - start
        k = index - before
        return start + k * targets // count, start + (k + 1) * targets // count
