"""Cuts a corpus into blocks: examples without endings, which the training loop reads."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from finetune.data.token_store import ExampleLengths
from finetune.pretraining.encoded_corpus import EncodedCorpus
from task_formats import Encoded


class TokenBlocks(Sequence[Encoded]):
    """Stretches of at most `context` tokens that together predict every token exactly once.

    A document of n + 1 tokens gives ⌈n / (context − 1)⌉ blocks of nearly equal length. Each starts
    with the last token of the block before; the first starts with the end-of-text token. A block
    crosses a document boundary only with `mix_documents`, which cuts the concatenated documents.
    """

    def __init__(
        self, corpus: EncodedCorpus, context: int, split: str, mix_documents: bool = False
    ) -> None:
        self._tokens, self._split = corpus.tokens, split
        self._starts = corpus.starts[[0, -1]] if mix_documents else corpus.starts
        targets = np.diff(self._starts)
        self._ends = np.cumsum(-(-targets // (context - 1)))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def targets(self) -> int:
        """Number of predicted tokens: all but the first one."""
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Encoded:  # type: ignore[override]
        """Returns a block as `Encoded(prefix=tokens, endings=())`; slices are not supported."""
        n = range(len(self))[index]
        first, last = (int(bound[0]) for bound in self._bounds(np.array([n])))
        tokens = cast(Sequence[int], self._tokens[first : last + 1])
        return Encoded(f"{self._split}/{n}", tokens, ())

    def compute_lengths(self) -> ExampleLengths:
        """Returns the lengths of all blocks without reading them."""
        first, last = self._bounds(np.arange(len(self)))
        return ExampleLengths(last - first + 1, np.ones_like(first), last - first + 1)

    def _bounds(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) positions of the first and the last token of n blocks."""
        documents = np.searchsorted(self._ends, indices, "right")
        before = np.where(documents > 0, self._ends[documents - 1], 0)
        count, start = self._ends[documents] - before, self._starts[documents]
        targets = self._starts[documents + 1] - start
        k = indices - before
        return start + k * targets // count, start + (k + 1) * targets // count
