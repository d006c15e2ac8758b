"""Which examples an update reads: a pure function of the seed and the update's number."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from finetune.batching.collate import Layout
from finetune.data.token_store import ExampleLengths


@dataclass(frozen=True)
class EpochSampler:
    """Shuffled epochs of `rows` examples, cut into updates of `batch_size`.

    Nothing is remembered between updates, so a run resumes anywhere, and any number of processes
    or any micro-batch reads the same examples in the same update.
    """

    rows: int
    batch_size: int
    epochs: float
    seed: int
    drop_incomplete: bool = False

    @property
    def updates_per_epoch(self) -> int:
        """Updates in an epoch; an incomplete batch counts unless it is dropped."""
        whole, rest = divmod(self.rows, self.batch_size)
        return whole + (1 if rest and not self.drop_incomplete else 0)

    @property
    def updates(self) -> int:
        """Updates in all (the original: floor(n / 32) · 3); one at least, if an epoch has any."""
        return max(min(self.updates_per_epoch, 1), round(self.updates_per_epoch * self.epochs))

    def epoch(self, update: int) -> float:
        """How many epochs are done after update 1, 2, ..."""
        return update / self.updates_per_epoch

    def indices(self, update: int) -> np.ndarray:
        """The examples of update 1, 2, ...: (B,) indices, fewer at the end of an epoch."""
        epoch, step = divmod(update - 1, self.updates_per_epoch)
        at = step * self.batch_size
        return shuffle_epoch(self.rows, self.seed, epoch)[at : at + self.batch_size]


@lru_cache(maxsize=2)
def shuffle_epoch(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: (N,) indices."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def shard_by_length(indices: np.ndarray, sizes: ExampleLengths, processes: int) -> list[np.ndarray]:
    """An update's examples dealt to processes, longest first to and fro, so that loads are even."""
    ranked = indices[np.argsort(-sizes.tokens[indices], kind="stable")]
    laps, seat = np.divmod(np.arange(len(ranked)), processes)
    seat = np.where(laps % 2, processes - 1 - seat, seat)
    return [ranked[seat == process] for process in range(processes)]


def batch_by_tokens(
    indices: np.ndarray, sizes: ExampleLengths, layout: Layout, budget: int
) -> list[np.ndarray]:
    """Examples sorted by length and cut into forward passes of at most `budget` tokens.

    Padding counts. Neighbours in length waste least of it, and of as few passes as the budget
    allows none is much larger than the others. One example always goes, however long it is.
    """
    if not len(indices):
        return []
    length = sizes.longest if layout == "separate" else sizes.tokens
    ranked = indices[np.argsort(-length[indices], kind="stable")]
    # A pass from the a-th to the b-th computes (filled[b] − filled[a]) · width[a] tokens: rows of
    # the first one's length, or just the tokens where nothing is padded.
    one = np.ones(len(ranked), np.int64)
    fill = {"packed": sizes.tokens[ranked], "shared": one, "separate": sizes.views[ranked]}[layout]
    filled = np.concatenate([[0], np.cumsum(fill)])
    width = one if layout == "packed" else length[ranked]
    fewest = len(_cut(filled, width, budget))
    # The least budget with which there are no more passes makes them as even as they can be.
    low, high = 0, budget
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(filled, width, middle)) == fewest else (middle, high)
    return np.split(ranked, _cut(filled, width, high)[1:])


def _cut(filled: np.ndarray, width: np.ndarray, budget: int) -> list[int]:
    """Where passes begin."""
    begins, at = [], 0
    while at < len(width):
        begins.append(at)
        room = filled[at] + budget // width[at]
        at = max(at + 1, int(np.searchsorted(filled, room, "right")) - 1)
    return begins
