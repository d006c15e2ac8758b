"""Which examples an update reads, and how they are cut into forward passes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
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
    classes: np.ndarray | None = field(default=None, compare=False, repr=False)
    """(N,) class of every row. Rows of a class are evenly spread over the epoch, so each update has
    about its share of them, and gradients vary less (Zhao and Zhang 2014, "Accelerating Minibatch
    Stochastic Gradient Descent using Stratified Sampling")."""

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
        return self.order(epoch)[start : start + self.batch_size]

    @cached_property
    def order(self) -> Callable[[int], np.ndarray]:
        """From epoch 0, 1, ... to the (N,) indices of all rows in its order."""
        return lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = generator.permutation(self.rows)
        if self.classes is None:
            return order
        _, drawn, counts = np.unique(self.classes[order], return_inverse=True, return_counts=True)
        rank = np.empty(self.rows)  # Within its class.
        starts = np.repeat(counts.cumsum() - counts, counts)
        rank[np.argsort(drawn, kind="stable")] = np.arange(self.rows) - starts
        place = (rank + generator.random(len(counts))[drawn]) / counts[drawn]
        return order[np.argsort(place, kind="stable")]


EPOCHS, MAX_EPOCHS = 3, 12
LEAST_UPDATES = 100
"""Updates for which few rows are trained for more epochs."""


def choose_epochs(rows: int, batch_size: int) -> int:
    """Returns the number of epochs where none is given: 3, and more for few rows.

    With few updates a pretrained model hardly learns (Zhang et al. 2021, "Revisiting Few-sample
    BERT Fine-tuning", section 6).

    >>> [choose_epochs(rows, 32) for rows in (100, 400, 1000, 5000)]
    [12, 8, 4, 3]
    """
    updates_per_epoch = math.ceil(rows / batch_size)
    return min(max(EPOCHS, math.ceil(LEAST_UPDATES / updates_per_epoch)), MAX_EPOCHS)


def shard_by_length(
    indices: np.ndarray,
    lengths: ExampleLengths,
    processes: int,
    classes: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Distributes (B,) examples of an update over processes that get about as many tokens each.

    Examples are handed out longest first, to processes 0, 1, ..., P - 1, P - 1, ..., 1, 0, 0, ...
    With the (N,) classes of all examples, they are handed out class by class.
    """
    group = np.zeros_like(indices) if classes is None else classes[indices]
    ranked = indices[np.lexsort((-lengths.tokens[indices], group))]
    round_number, process = np.divmod(np.arange(len(ranked)), processes)
    process = np.where(round_number % 2, processes - 1 - process, process)
    return [ranked[process == rank] for rank in range(processes)]


def batch_by_tokens(
    indices: np.ndarray, lengths: ExampleLengths, layout: Layout, max_tokens: int
) -> list[np.ndarray]:
    """Cuts (B,) examples into as few forward passes as possible, of even sizes.

    A pass has at most `max_tokens` tokens, padding included; a single longer example still gets a
    pass. The longest examples come first, so that rows of a pass need little padding.
    """
    if not len(indices):
        return []
    length = lengths.longest if layout == "separate" else lengths.tokens
    ranked = indices[np.argsort(-length[indices], kind="stable")]
    # A pass over ranked[a:b] has (end[b] - end[a]) · width[a] tokens: rows of the first example's
    # length, or, where nothing is padded, just the tokens.
    tokens, views, one = lengths.tokens[ranked], lengths.views[ranked], np.ones_like(ranked)
    size, width = {
        "packed": (tokens, one),
        "shared": (one, tokens),
        "separate": (views, lengths.longest[ranked]),
    }[layout]
    end = np.concatenate([[0], np.cumsum(size)])
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
