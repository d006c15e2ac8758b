"""Which examples an update reads, and how they are cut into forward passes."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from finetune.batching.collate import Layout
from finetune.data.token_store import ExampleLengths


class BatchConfig(NamedTuple):
    """How batches are made for a model."""

    layout: Layout
    pad_id: int
    max_tokens_per_forward: int


@dataclass(frozen=True)
class EpochSampler:
    """Shuffled epochs of examples, cut into updates.

    The examples of an update are a pure function of the seed and the update's number. So a run
    resumes at any update, and any number of processes reads the same examples in the same update.
    """

    rows: int
    """Examples of the training split."""
    batch_size: int
    """Examples of an update."""
    epochs: float
    seed: int
    drop_incomplete: bool = False
    """Drops an epoch's last update where it would be smaller than the others."""

    @property
    def updates_per_epoch(self) -> int:
        """Updates of an epoch; an incomplete one counts unless it is dropped."""
        complete, remainder = divmod(self.rows, self.batch_size)
        return complete + (1 if remainder and not self.drop_incomplete else 0)

    @property
    def updates(self) -> int:
        """Updates of the run, at least one if an epoch has any (original code: floor(n/32) · 3)."""
        return max(min(self.updates_per_epoch, 1), round(self.updates_per_epoch * self.epochs))

    def epoch(self, update: int) -> float:
        """Epochs that are finished after update 1, 2, ..."""
        return update / self.updates_per_epoch

    def indices(self, update: int) -> np.ndarray:
        """(B,) indices of the examples of update 1, 2, ...; fewer at the end of an epoch."""
        epoch, step = divmod(update - 1, self.updates_per_epoch)
        start = step * self.batch_size
        return shuffle_epoch(self.rows, self.seed, epoch)[start : start + self.batch_size]


@lru_cache(maxsize=2)
def shuffle_epoch(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch: (N,) indices."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def shard_by_length(
    indices: np.ndarray, lengths: ExampleLengths, processes: int
) -> list[np.ndarray]:
    """Distributes an update's examples over processes, so that all have about as many tokens.

    Args:
        indices: (B,) examples of the update.
        lengths: Of all N examples.
        processes: How many shares to make.

    Returns:
        An array of indices per process. Examples are handed out longest first, in the order of
        processes 0, 1, ..., P - 1, P - 1, ..., 1, 0, 0, 1, ...
    """
    longest_first = indices[np.argsort(-lengths.tokens[indices], kind="stable")]
    round_number, process = np.divmod(np.arange(len(longest_first)), processes)
    process = np.where(round_number % 2, processes - 1 - process, process)
    return [longest_first[process == rank] for rank in range(processes)]


def batch_by_tokens(
    indices: np.ndarray, lengths: ExampleLengths, layout: Layout, max_tokens: int
) -> list[np.ndarray]:
    """Cuts examples into as few forward passes as `max_tokens` allows, of even sizes.

    Examples are sorted by length first, so that rows of a pass need little padding.

    Args:
        indices: (B,) examples to read.
        lengths: Of all N examples.
        layout: Decides what is padded.
        max_tokens: The largest number of tokens of a pass, padding included. A single longer
            example still gets a pass.

    Returns:
        An array of indices per pass, the longest examples first.
    """
    if not len(indices):
        return []
    length = lengths.longest if layout == "separate" else lengths.tokens
    ranked = indices[np.argsort(-length[indices], kind="stable")]
    # A pass over ranked[a:b] has (end[b] - end[a]) · width[a] tokens: rows of the first example's
    # length, or, where nothing is padded, just the tokens.
    one = np.ones(len(ranked), np.int64)
    size = {
        "packed": lengths.tokens[ranked],
        "shared": one,
        "separate": lengths.views[ranked],
    }[layout]
    end = np.concatenate([[0], np.cumsum(size)])
    width = one if layout == "packed" else length[ranked]
    fewest = len(_cut(end, width, max_tokens))
    # The smallest limit that needs no more passes makes them as even as possible.
    low, high = 0, max_tokens
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cut(end, width, middle)) == fewest else (middle, high)
    return np.split(ranked, _cut(end, width, high)[1:])


def _cut(end: np.ndarray, width: np.ndarray, max_tokens: int) -> list[int]:
    """The first example of every pass."""
    starts, start = [], 0
    while start < len(width):
        starts.append(start)
        limit = end[start] + max_tokens // width[start]
        start = max(start + 1, int(np.searchsorted(end, limit, "right")) - 1)
    return starts
