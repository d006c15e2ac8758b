"""What collate writes, read back by the attention rule from the tensors alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.batching.collate import Batch, collate, count_totals, round_up, to_device
from task_formats import Encoded
from tests.support import samples
from tests.support.samples import LAYOUTS

TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=6)
LABELS = st.one_of(st.none(), st.integers(0, 3))


@st.composite
def encoded(draw, endings: int = 4) -> Encoded:
    ends = draw(st.lists(TOKENS, min_size=0 if endings == 0 else 1, max_size=endings))
    return Encoded("x/0", draw(TOKENS), tuple(ends), draw(LABELS))


MANY = st.lists(encoded(), min_size=1, max_size=5)
TEXTS = st.lists(encoded(endings=0), min_size=1, max_size=5)


def read_back(batch: Batch) -> dict[tuple[int, int], list[int]]:
    """(example, ending) to the tokens of the view."""
    views: dict[tuple[int, int], list[int]] = {}
    width = batch.tokens.shape[1]
    for n, k in (batch.last_index >= 0).nonzero().tolist():
        row, last = divmod(int(batch.last_index[n, k]), width)
        seen = [
            column
            for column in range(last + 1)
            if batch.example_id[row, column] == n and batch.ending_id[row, column] in (-1, k)
        ]
        assert batch.position_ids[row, seen].tolist() == list(range(len(seen)))
        views[n, k] = batch.tokens[row, seen].tolist()
    return views


@given(MANY, st.sampled_from(LAYOUTS), st.booleans())
def test_every_view_can_be_read_from_every_layout(many: list[Encoded], layout, rounded) -> None:
    batch = collate(many, layout, rounded=rounded)
    expected = {
        (n, k): view
        for n, example in enumerate(many)
        for k, view in enumerate(samples.views(example))
    }
    assert read_back(batch) == expected
    assert batch.last_index.shape == (len(many), max(len(example.endings) for example in many))


def test_few_numbers_remain_when_numbers_are_rounded_up() -> None:
    rounded = {n: round_up(n) for n in range(1, 8193)}
    assert all(n <= up < n + max(8, n / 15) for n, up in rounded.items())
    assert len(set(rounded.values())) < 130
    assert all(round_up(up) == up for up in rounded.values())
    batch = collate([Encoded("x", [1] * 300, ([2],))], "packed", rounded=True)
    assert batch.tokens.shape == (1, 304)


@given(MANY, st.sampled_from(LAYOUTS))
def test_layouts_have_the_rows_and_columns_they_promise(many: list[Encoded], layout) -> None:
    batch = collate(many, layout)
    views = [len(view) for example in many for view in samples.views(example)]
    expected = {
        "separate": (len(views), max(views)),
        "shared": (len(many), max(example.tokens for example in many)),
        "packed": (1, sum(example.tokens for example in many)),
    }
    assert batch.tokens.shape == expected[layout]
    padding = batch.example_id < 0
    assert (batch.tokens[padding] == 0).all()
    assert batch.position_ids.min() >= 0
    assert batch.position_ids.max() < max(views)


def weights_by_target(batch: Batch) -> dict[tuple[int, int, int, int], float]:
    """(example, ending or -1, position, token) of every target to its total weight."""
    position_ids, owner = batch.position_ids.flatten(), batch.example_id.flatten()
    weights: dict[tuple[int, int, int, int], float] = {}
    columns = (batch.lm_index, batch.lm_target, batch.target_view, batch.token_weight)
    for index, target, view, weight in zip(*(x.tolist() for x in columns), strict=True):
        n = int(owner[index])
        ending = -1 if view < 0 else view % max(batch.last_index.shape[1], 1)
        assert view < 0 or view // batch.last_index.shape[1] == n
        key = (n, ending, int(position_ids[index]) + 1, target)
        weights[key] = weights.get(key, 0.0) + weight
    return weights


@given(MANY, st.sampled_from(LAYOUTS))
def test_lm_weights_are_means_over_a_views_targets_and_then_over_views(many, layout) -> None:
    views = sum(len(example.endings) for example in many)
    expected: dict[tuple[int, int, int, int], float] = {}
    for n, example in enumerate(many):
        for k, view in enumerate(samples.views(example)):
            for t in range(1, len(view)):
                key = (n, -1 if t < len(example.prefix) else k, t, view[t])
                expected[key] = expected.get(key, 0.0) + 1 / (len(view) - 1) / views
    weights = weights_by_target(collate(many, layout))
    assert weights == pytest.approx(expected, rel=1e-5)
    assert sum(weights.values()) == pytest.approx(1, rel=1e-5)


@given(TEXTS, st.sampled_from(LAYOUTS))
def test_in_plain_text_all_targets_weigh_the_same(many: list[Encoded], layout) -> None:
    targets = sum(len(example.prefix) - 1 for example in many)
    batch = collate(many, layout)
    assert len(batch.lm_target) == targets
    np.testing.assert_allclose(batch.token_weight.numpy(), 1 / max(targets, 1), rtol=1e-6)


@given(MANY, st.sampled_from(LAYOUTS), st.integers(1, 4))
def test_parts_of_an_update_weigh_as_much_as_the_whole(many, layout, size: int) -> None:
    totals = count_totals(many)
    starts = range(0, len(many), size)
    batches = [collate(many[start : start + size], layout, 0, totals) for start in starts]
    whole = collate(many, layout)
    for name in ("token_weight", "example_weight"):
        total = sum(float(getattr(batch, name).sum()) for batch in batches)
        assert total == pytest.approx(float(getattr(whole, name).sum()), rel=1e-5)
    labelled = sum(example.label is not None for example in many)
    expected = [0.0 if example.label is None else 1 / labelled for example in many]
    assert whole.example_weight.tolist() == pytest.approx(expected)


@given(MANY)
def test_class_weights_normalise_by_the_weight_of_the_whole_update(many: list[Encoded]) -> None:
    weights = [0.5, 1.0, 3.0, 7.0]
    totals = count_totals(many, weights)
    total = sum(weights[example.label] for example in many if example.label is not None)
    for example in many:
        (factor,) = collate([example], "packed", 0, totals).example_weight.tolist()
        expected = 0.0 if example.label is None else 1 / total
        assert factor == pytest.approx(expected)


def test_all_tensors_go_to_the_device() -> None:
    batch = collate([Encoded("x/0", [1, 2], ([3], [4, 5]), 0)], "packed")
    moved = to_device(batch, torch.device("meta"))
    for before, after in zip(batch, moved, strict=True):
        if isinstance(before, torch.Tensor):
            expected = ("meta", before.shape, before.dtype)
            assert (after.device.type, after.shape, after.dtype) == expected
        else:
            assert before == after
    same = to_device(batch, torch.device("cpu"))
    assert all(one is other for one, other in zip(batch, same, strict=True))
