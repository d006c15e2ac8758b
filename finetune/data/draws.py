"""Stratified parts of rows."""

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_STREAM = 0x5EED
"""Keeps the draw of a fraction independent of other draws with the same seed."""
_LONG_RUN = 0.9
"""Share of neighbouring rows with equal labels from which the rows count as sorted."""


def is_sorted(labels: Sequence[Hashable]) -> bool:
    """Whether rows are sorted by label, so that a first part of them has few of the labels."""
    if len(set(labels)) < 2 or len(set(labels)) * 2 > len(labels):
        return False
    equal = sum(one == other for one, other in pairwise(labels))
    expected = sum((count / len(labels)) ** 2 for count in Counter(labels).values())
    return equal / (len(labels) - 1) > max(_LONG_RUN, (1 + expected) / 2)


def draw_fraction(strata: Array, fraction: float, seed: int) -> Array:
    """Draws a stratified part of N rows, for curves over the number of labels.

    With one seed, a smaller fraction is a subset of every larger one. Labels share the rows in
    proportion to their frequency, by Webster's method.

    Args:
        strata: (N,) class of every row, or bin of its score.
        fraction: Share of the rows, above 0 and at most 1.
        seed: Decides which rows of a class are drawn.

    Returns:
        Sorted indices of max(1, round(fraction · N)) rows.
    """
    drawn = np.random.Generator(np.random.PCG64([seed, _STREAM])).permutation(len(strata))
    rank = np.empty(len(strata))
    for value in np.unique(strata):
        rows = drawn[strata[drawn] == value]
        rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    # Ordered by rank, every beginning of the order is stratified.
    order = drawn[np.argsort(rank[drawn], kind="stable")]
    return np.sort(order[: max(1, round(fraction * len(strata)))])
