"""Cutting texts so that every view fits, the longest first and alike wherever a text occurs."""

from collections.abc import Mapping, Sequence


def fit(
    lengths: Mapping[str, int], views: Sequence[Sequence[str]], room: Sequence[int]
) -> dict[str, int]:
    """How many tokens of each text to keep, so that view k holds at most `room[k]` of them.

    A text counts once for every time a view names it. Each text has one length wherever it
    occurs, so mirrored views stay mirrored and a shared context stays shared. Heads are kept.

    >>> fit({"a": 9, "b": 2}, [("a", "b"), ("b", "a")], [7, 7])
    {'a': 5, 'b': 2}
    """
    kept = dict(lengths)

    def excess(k: int) -> int:
        return sum(kept[text] for text in views[k]) - room[k]

    # The fullest view first: what it gives up, the others need not. Lengths only ever shrink,
    # so each view is looked at once. A tie goes by the words: the order of choices has no say.
    for k in sorted(range(len(views)), key=lambda k: (-excess(k), sorted(views[k]))):
        if excess(k) > 0:
            _lower(kept, views[k], room[k])
    return kept


def _lower(kept: dict[str, int], view: Sequence[str], room: int) -> None:
    """Cut the view's longest texts down to a common level, the highest at which the view fits."""
    counts = {text: view.count(text) for text in view}
    level = _level([(kept[text], count) for text, count in counts.items()], room)
    spare = room - sum(min(kept[text], level) * count for text, count in counts.items())
    # What the level leaves over goes to cut texts in order of their own words, not of their
    # place in the view: a mirrored view must come to the same lengths.
    for text in sorted(counts):
        if kept[text] > level:
            extra = 1 if spare >= counts[text] else 0
            kept[text] = level + extra
            spare -= extra * counts[text]


def _level(lengths: Sequence[tuple[int, int]], room: int) -> int:
    """The largest whole level with Σ count · min(length, level) ≤ room."""
    remaining, weight = room, sum(count for _, count in lengths)
    for length, count in sorted(lengths):
        if length * weight > remaining:
            return max(0, remaining // weight)
        remaining -= length * count
        weight -= count
    return max((length for length, _ in lengths), default=0)
