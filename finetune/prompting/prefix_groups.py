"""Groups requests whose contexts share a beginning, so that it is read once for all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from task_formats import Encoded

MIN_SAVED_TOKENS = 256
"""A shared beginning is cached where that saves at least this many tokens."""


class PrefixGroup(NamedTuple):
    """Requests whose contexts agree in their first `length` tokens."""

    length: int
    """0 for requests that share too little."""
    requests: np.ndarray
    """(n,) indices of the requests."""


def find_prefix_groups(requests: Sequence[Encoded]) -> list[PrefixGroup]:
    """Assigns every request to one group; requests that share too little form the last one.

    Requests are sorted by their contexts, so that neighbours share the most tokens. A request
    joins the group before it unless that would lower what the group saves, which is its length
    times the number of its requests less one.
    """
    contexts = [np.asarray(request.prefix) for request in requests]
    order = sorted(range(len(requests)), key=lambda n: tuple(requests[n].prefix))
    groups: list[tuple[int, list[int]]] = []
    for n in order:
        longest = len(contexts[n]) - 1  # The last token is an input: it predicts the answer.
        if groups:
            length, members = groups[-1]
            common = min(length, longest, _common_length(contexts[members[-1]], contexts[n]))
            if common * len(members) > max(length * (len(members) - 1), 0):
                groups[-1] = (common, [*members, n])
                continue
        groups.append((longest, [n]))
    shared = [
        PrefixGroup(length, np.array(members))
        for length, members in groups
        if length * (len(members) - 1) >= MIN_SAVED_TOKENS
    ]
    grouped = {int(n) for group in shared for n in group.requests}
    others = np.array([n for n in order if n not in grouped], np.int64)
    return shared + ([PrefixGroup(0, others)] if len(others) else [])


def _common_length(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two contexts have in common at their beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
