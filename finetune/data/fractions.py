"""Parts of a labelled set for curves over the number of labels: nested, stratified, seeded."""

import numpy as np

_STRATA = 10
"""Ranges of a score with equally many rows, which are to it what its labels are to a class."""
_STREAM = 0x5EED
"""Keeps this draw apart from the others of the same seed."""


def draw_fraction(labels: np.ndarray, fraction: float, seed: int, *, classes: bool) -> np.ndarray:
    """Sorted indices of round(fraction · N) of N rows, at least one; 1 gives all of them.

    Nested: with one seed a smaller part lies within every larger one. Stratified: labels share
    the places in proportion to their rows, by Webster's method; where they are scores and no
    `classes`, the tenths of their range with equally many rows do. Which rows of a label are
    taken is drawn by the seed.
    """
    count = max(1, round(fraction * len(labels)))
    strata = labels if classes else _tenths(labels)
    return np.sort(_order(strata, seed)[:count])


def _order(strata: np.ndarray, seed: int) -> np.ndarray:
    """All rows, so arranged that every beginning is stratified."""
    drawn = np.random.Generator(np.random.PCG64([seed, _STREAM])).permutation(len(strata))
    turn = np.empty(len(strata))
    for value in np.unique(strata):
        rows = drawn[strata[drawn] == value]
        turn[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return drawn[np.argsort(turn[drawn], kind="stable")]


def _tenths(scores: np.ndarray) -> np.ndarray:
    ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    return ranks * _STRATA // len(scores)
