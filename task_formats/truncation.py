"""Truncation: the longest texts first, and a text alike wherever it occurs."""

from collections import Counter
from collections.abc import Mapping, Sequence


def truncate_longest_first(
    lengths: Mapping[str, int], views: Sequence[Sequence[str]], limits: Sequence[int]
) -> dict[str, int]:
    """Decides how many tokens of each text to keep, so that view k has at most `limits[k]`.

    A text gets one length, wherever it occurs: mirrored views stay mirrored and a shared context
    stays shared. It counts as often as a view contains it. The beginnings of texts are kept.

    >>> truncate_longest_first({"a": 9, "b": 2}, [("a", "b"), ("b", "a")], [7, 7])
    {'a': 5, 'b': 2}
    """
    kept = dict(lengths)

    def excess(k: int) -> int:
        return sum(map(kept.__getitem__, views[k])) - limits[k]

    if all(excess(k) <= 0 for k in range(len(views))):
        return kept
    # The fullest view first: the others profit from what it gives up. Lengths only shrink, so one
    # look at each view is enough. Ties are broken by the words, so the order of choices is
    # irrelevant.
    for k in sorted(range(len(views)), key=lambda k: (-excess(k), sorted(views[k]))):
        if excess(k) > 0:
            _shorten(kept, views[k], limits[k])
    return kept


def _shorten(kept: dict[str, int], view: Sequence[str], limit: int) -> None:
    """Cuts the view's longest texts to a common length, the largest with which the view fits."""
    counts = Counter(view)
    remaining, uncut = limit, len(view)
    for text in sorted(counts, key=kept.__getitem__):
        if kept[text] * uncut > remaining:
            break
        remaining -= kept[text] * counts[text]
        uncut -= counts[text]
    common, spare = divmod(remaining, uncut)
    # Tokens that are left over go to the texts in alphabetical order, not in the order of the
    # view: a mirrored view must get the same lengths.
    for text in sorted(counts):
        if kept[text] > common:
            extra = 1 if spare >= counts[text] else 0
            kept[text] = common + extra
            spare -= extra * counts[text]
