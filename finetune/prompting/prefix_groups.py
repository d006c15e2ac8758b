"""Contexts that begin alike: which of them to read together, their beginning only once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from task_formats import Encoded

MIN_SHARED_TOKENS = 256
"""Tokens that must be saved for a beginning to be read on its own."""


class PrefixGroup(NamedTuple):
    """Requests whose contexts have their first `length` tokens in common; 0 where none."""

    length: int
    requests: np.ndarray
    """(n,) indices of the requests."""


def find_prefix_groups(requests: Sequence[Encoded]) -> list[PrefixGroup]:
    """Every request in one trunk; those that share nothing worthwhile are the last.

    In order of their tokens neighbours share the most. One joins its neighbours' trunk if that
    does not lower what the trunk saves: its length for all requests but one.
    """
    contexts = [np.asarray(request.prefix) for request in requests]
    order = sorted(range(len(requests)), key=lambda n: tuple(requests[n].prefix))
    trunks: list[tuple[int, list[int]]] = []
    for n in order:
        longest = len(contexts[n]) - 1  # The last token is read anew: it predicts.
        if trunks:
            length, members = trunks[-1]
            common = min(length, longest, _common(contexts[members[-1]], contexts[n]))
            if common * len(members) > max(length * (len(members) - 1), 0):
                trunks[-1] = (common, [*members, n])
                continue
        trunks.append((longest, [n]))
    shared = [
        PrefixGroup(length, np.array(members))
        for length, members in trunks
        if length * (len(members) - 1) >= MIN_SHARED_TOKENS
    ]
    inside = {int(n) for trunk in shared for n in trunk.requests}
    alone = np.array([n for n in order if n not in inside], np.int64)
    return shared + ([PrefixGroup(0, alone)] if len(alone) else [])


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two contexts have in common at their beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
