"""Truncation: every view fits, the longest texts are cut first, and no more than needed."""

from hypothesis import given
from hypothesis import strategies as st

from task_formats.truncation import truncate_longest_first as truncate

NAMES = "abcde"


@st.composite
def cases(draw, most_views: int = 4):
    """Texts with lengths, views that name them (some twice), and what each view has limits for."""
    names = NAMES[: draw(st.integers(1, 5))]
    lengths = {name: draw(st.integers(0, 40)) for name in names}
    view = st.lists(st.sampled_from(names), min_size=1, max_size=4).map(tuple)
    views = draw(st.lists(view, min_size=1, max_size=most_views))
    limits = [draw(st.integers(0, 60)) for _ in views]
    return lengths, views, limits


def size(kept, view) -> int:
    return sum(kept[name] for name in view)


@given(cases())
def test_every_view_fits_and_no_text_grows(case) -> None:
    lengths, views, limits = case
    kept = truncate(lengths, views, limits)
    assert kept.keys() == lengths.keys()
    assert all(0 <= kept[name] <= lengths[name] for name in lengths)
    assert all(size(kept, view) <= space for view, space in zip(views, limits, strict=True))


@given(cases())
def test_what_fits_is_unchanged_and_truncation_is_idempotent(case) -> None:
    lengths, views, limits = case
    kept = truncate(lengths, views, limits)
    assert truncate(kept, views, limits) == kept
    assert truncate(lengths, views, [size(lengths, view) for view in views]) == lengths
    named = {name for view in views for name in view}
    assert all(kept[name] == lengths[name] for name in lengths if name not in named)


@given(cases(most_views=1))
def test_the_longest_are_cut_to_a_common_length(case) -> None:
    lengths, views, limits = case
    kept = truncate(lengths, views, limits)
    cut = [name for name in set(views[0]) if kept[name] < lengths[name]]
    for name in cut:
        assert all(kept[other] <= kept[name] + 1 for other in views[0])


@given(cases(most_views=1))
def test_no_token_is_removed_without_need(case) -> None:
    lengths, (view,), (limit,) = case
    kept = truncate(lengths, [view], [limit])
    cut = [name for name in set(view) if kept[name] < lengths[name]]
    for name in cut:
        # One more token of a text that was cut the most, wherever the view repeats it, won't fit.
        if kept[name] == min(kept[other] for other in cut):
            assert size(kept, view) + view.count(name) > limit


@given(cases())
def test_only_views_that_are_too_long_cause_cuts(case) -> None:
    lengths, views, limits = case
    kept = truncate(lengths, views, limits)
    too_long = {
        name
        for view, space in zip(views, limits, strict=True)
        if size(lengths, view) > space
        for name in view
    }
    assert {name for name in lengths if kept[name] < lengths[name]} <= too_long


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_views_and_of_the_words_in_them_does_not_matter(case, random) -> None:
    lengths, views, limits = case
    mixed = [(random.sample(view, len(view)), n) for view, n in zip(views, limits, strict=True)]
    random.shuffle(mixed)
    assert truncate(lengths, *zip(*mixed, strict=True)) == truncate(lengths, views, limits)


def test_a_text_that_a_view_repeats_counts_twice() -> None:
    assert truncate({"a": 10}, [("a", "a")], [7]) == {"a": 3}
