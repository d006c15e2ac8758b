"""Three layouts, any micro-batches, any padding: one result."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.batching.collate import Batch, collate, count_totals, to_device
from finetune.models.attention import interface as attention
from finetune.models.attention.interface import ATTENTION_NAME, supports_packed_attention
from finetune.models.attention.padded_groups import group_by_length
from task_formats import Encoded
from tests.support import samples
from tests.support.families import FAMILIES
from tests.support.samples import KINDS

LAYOUTS = ("separate", "shared", "packed")
FIXED = ("openai-gpt", "gpt_neo")
"""Families whose attention is their own: they read separate rows only."""
FREE = tuple(family for family in FAMILIES if family not in FIXED)


# -- what collate writes ---------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=6)
LABELS = st.one_of(st.none(), st.integers(0, 3))


@st.composite
def encoded(draw, endings: int = 4) -> Encoded:
    ends = draw(st.lists(TOKENS, min_size=0 if endings == 0 else 1, max_size=endings))
    return Encoded("x/0", draw(TOKENS), tuple(ends), draw(LABELS))


MANY = st.lists(encoded(), min_size=1, max_size=5)
TEXTS = st.lists(encoded(endings=0), min_size=1, max_size=5)


def read_back(batch: Batch) -> dict[tuple[int, int], list[int]]:
    """(example, ending) -> the view's tokens, by the attention rule, from the tensors alone."""
    found: dict[tuple[int, int], list[int]] = {}
    width = batch.tokens.shape[1]
    for n, k in (batch.last_index >= 0).nonzero().tolist():
        row, last = divmod(int(batch.last_index[n, k]), width)
        seen = [
            column
            for column in range(last + 1)
            if batch.example[row, column] == n and batch.ending[row, column] in (-1, k)
        ]
        assert batch.position_ids[row, seen].tolist() == list(range(len(seen)))
        found[n, k] = batch.tokens[row, seen].tolist()
    return found


@given(MANY, st.sampled_from(LAYOUTS))
def test_every_view_can_be_read_from_every_layout(many: list[Encoded], layout) -> None:
    batch = collate(many, layout)
    expected = {
        (n, k): view
        for n, example in enumerate(many)
        for k, view in enumerate(samples.views(example))
    }
    assert read_back(batch) == expected
    assert batch.last_index.shape == (len(many), max(len(example.endings) for example in many))


@given(MANY, st.sampled_from(LAYOUTS))
def test_rows_are_what_the_layout_promises(many: list[Encoded], layout) -> None:
    batch = collate(many, layout)
    views = [len(view) for example in many for view in samples.views(example)]
    expected = {
        "separate": (len(views), max(views)),
        "shared": (len(many), max(example.tokens for example in many)),
        "packed": (1, sum(example.tokens for example in many)),
    }
    assert batch.tokens.shape == expected[layout]
    padding = batch.example < 0
    assert (batch.tokens[padding] == 0).all()
    assert batch.position_ids.min() >= 0
    assert batch.position_ids.max() < max(views)


def weights_by_target(batch: Batch) -> dict[tuple[int, int, int, int], float]:
    """(example, ending or -1, place, token) of every target -> its whole weight."""
    place, owner = batch.position_ids.flatten(), batch.example.flatten()
    tokens, found = batch.tokens.flatten(), {}
    parts = (batch.lm_index, batch.lm_target, batch.view, batch.token_weight)
    for source, target, view, weight in zip(*(part.tolist() for part in parts), strict=True):
        ending = -1 if view < 0 else view % max(batch.last_index.shape[1], 1)
        key = (int(owner[source]), ending, int(place[source]) + 1, target)
        found[key] = found.get(key, 0.0) + weight
        # The state that predicts a target belongs to the token before it.
        n = int(owner[source])
        assert view < 0 or view // batch.last_index.shape[1] == n
        assert tokens[source] >= 0
    return found


@given(MANY, st.sampled_from(LAYOUTS))
def test_a_target_weighs_its_share_of_its_view_and_a_view_its_share_of_all(many, layout) -> None:
    views = sum(len(example.endings) for example in many)
    expected: dict[tuple[int, int, int, int], float] = {}
    for n, example in enumerate(many):
        for k, view in enumerate(samples.views(example)):
            for t in range(1, len(view)):
                key = (n, -1 if t < len(example.prefix) else k, t, view[t])
                expected[key] = expected.get(key, 0.0) + 1 / (len(view) - 1) / views
    found = weights_by_target(collate(many, layout))
    assert found == pytest.approx(expected, rel=1e-5)
    assert sum(found.values()) == pytest.approx(1, rel=1e-5)


@given(TEXTS, st.sampled_from(LAYOUTS))
def test_in_plain_text_all_targets_weigh_the_same(many: list[Encoded], layout) -> None:
    targets = sum(len(example.prefix) - 1 for example in many)
    batch = collate(many, layout)
    assert len(batch.lm_target) == targets
    np.testing.assert_allclose(batch.token_weight.numpy(), 1 / max(targets, 1), rtol=1e-6)


@given(MANY, st.sampled_from(LAYOUTS), st.integers(1, 4))
def test_parts_of_an_update_weigh_as_much_as_the_whole(many, layout, size: int) -> None:
    totals = count_totals(many)
    parts = [collate(many[at : at + size], layout, 0, totals) for at in range(0, len(many), size)]
    whole = collate(many, layout)
    for name in ("token_weight", "example_weight"):
        found = sum(float(getattr(part, name).sum()) for part in parts)
        assert found == pytest.approx(float(getattr(whole, name).sum()), rel=1e-5)
    labelled = sum(example.label is not None for example in many)
    expected = [0.0 if example.label is None else 1 / labelled for example in many]
    assert whole.example_weight.tolist() == pytest.approx(expected)


# -- the same result -------------------------------------------------------------------------------


def test_a_batch_is_sent_whole(bases) -> None:
    base = samples.load(bases("gpt2"))
    batch = collate(samples.examples(KINDS["entailment"], base), "packed", base.task_tokens.pad_id)
    sent = to_device(batch, torch.device("meta"))
    for here, there in zip(batch, sent, strict=True):
        if isinstance(here, torch.Tensor):
            assert (there.device.type, there.shape, there.dtype) == ("meta", here.shape, here.dtype)
        else:
            assert here == there
    assert all(
        one is other
        for one, other in zip(batch, to_device(batch, torch.device("cpu")), strict=True)
    )


def test_the_families_that_take_any_layout_are_known(bases) -> None:
    found = {
        family
        for family in FAMILIES
        if supports_packed_attention(samples.load(bases(family)).decoder)
    }
    assert found == set(FREE)


def assert_same(one: samples.Found, other: samples.Found) -> None:
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-5, atol=1e-6)
    assert samples.distance(one.gradients, other.gradients) < 1e-5


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("family", FREE)
def test_all_layouts_give_the_same_logits_losses_and_gradients(family, name, bases) -> None:
    kind, base = KINDS[name], samples.load(bases(family))
    many = samples.examples(kind, base)
    model = samples.task_model(kind, base)
    separate, shared, packed = (
        samples.run_as(model, many, x, base.task_tokens.pad_id) for x in LAYOUTS
    )
    assert_same(shared, separate)
    assert_same(packed, separate)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_four_times_eight_is_thirty_two(name: str, layout, bases) -> None:
    kind, base = KINDS[name], samples.load(bases("gpt2"))
    many = samples.examples(kind, base, count=32, max_tokens=20)
    model, totals = samples.task_model(kind, base), count_totals(many)
    whole = samples.run_as(model, many, layout, base.task_tokens.pad_id)
    # Unequal micro-batches too: the sum is of shares, not a mean of means.
    for cuts in ((0, 8, 16, 24, 32), (0, 1, 20, 32)):
        parts = [
            collate(many[at:end], layout, base.task_tokens.pad_id, totals)
            for at, end in pairwise(cuts)
        ]
        found = samples.run(model, parts)
        torch.testing.assert_close(found.losses, whole.losses, rtol=1e-5, atol=1e-6)
        assert samples.distance(found.gradients, whole.gradients) < 1e-5


def padded_left(batch: Batch, pad: int) -> Batch:
    """The same rows pushed to the right edge, padding in front, two columns of it at least."""
    height, width = batch.tokens.shape
    shifts = [2 + width - span.stop for span in batch.spans]
    assert len(shifts) == height, "one span a row"

    def push(grid: torch.Tensor, fill: int) -> torch.Tensor:
        moved = torch.full((height, width + 2), fill)
        for row, (span, shift) in enumerate(zip(batch.spans, shifts, strict=True)):
            moved[row, shift : shift + span.stop] = grid[row, : span.stop]
        return moved

    def move(flat: torch.Tensor) -> torch.Tensor:
        row, column = flat.clamp(min=0) // width, flat.clamp(min=0) % width
        moved = row * (width + 2) + column + torch.tensor(shifts)[row]
        return torch.where(flat < 0, flat, moved)

    return batch._replace(
        tokens=push(batch.tokens, pad),
        position_ids=push(batch.position_ids, 0),
        example=push(batch.example, -1),
        ending=push(batch.ending, -1),
        last_index=move(batch.last_index),
        lm_index=move(batch.lm_index),
        spans=tuple(
            span._replace(start=shift) for span, shift in zip(batch.spans, shifts, strict=True)
        ),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["multiple_choice", "similarity"])
def test_padding_on_either_side_or_none_gives_the_same(family: str, name: str, bases) -> None:
    kind, base = KINDS[name], samples.load(bases(family))
    many, pad = samples.examples(kind, base), base.task_tokens.pad_id
    model = samples.task_model(kind, base)
    batch = collate(many, "separate", pad)
    right = samples.run(model, [batch])
    left = samples.run(model, [padded_left(batch, pad)])
    assert_same(left, right)
    # Whatever the pad token is, nobody sees it.
    other = samples.run(model, [collate(many, "separate", 5)])
    assert_same(other, right)
    with torch.no_grad():
        for n, example in enumerate(many):
            pieces = [example._replace(endings=(ending,)) for ending in example.endings]
            alone = [
                model.backbone.hidden_states(collate([piece], "separate", pad)) for piece in pieces
            ]
            features = torch.stack([states[-1] for states in alone])[None]
            logits = model.head(features, torch.ones(1, len(pieces), dtype=torch.bool))[0]
            torch.testing.assert_close(logits, right.logits[n, : len(logits)], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", FIXED)
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_base_that_cannot_take_a_layout_says_so(family: str, layout, bases) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    model = samples.task_model(kind, base)
    with pytest.raises(ValueError, match="separate"):
        model(collate(samples.examples(kind, base), layout, base.task_tokens.pad_id))


def test_attention_dropout_drops_nothing_where_it_may_not(bases) -> None:
    """The path that drops attention weights is the same arithmetic as the fused one."""
    kind, base = KINDS["multiple_choice"], samples.load(bases("gpt2"))
    assert base.decoder.config._attn_implementation == ATTENTION_NAME
    model = samples.task_model(kind, base)
    many = samples.examples(kind, base)
    expected = samples.run_as(model, many, "shared", base.task_tokens.pad_id)
    for module in model.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 1e-12
    for layout in LAYOUTS:
        assert_same(samples.run_as(model, many, layout, base.task_tokens.pad_id), expected)
    for module in model.modules():
        if hasattr(module, "attn_dropout"):
            module.attn_dropout.p = 0.5
    found = samples.run_as(model, many, "shared", base.task_tokens.pad_id)
    assert (found.logits - expected.logits)[expected.logits.isfinite()].abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FREE)
def test_sequences_laid_in_rectangles_give_the_same(family, layout, bases, monkeypatch) -> None:
    """What a GPU is given instead of a call for each sequence."""
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    many, pad = samples.examples(kind, base, count=7), base.task_tokens.pad_id
    model = samples.task_model(kind, base)
    expected = samples.run_as(model, many, layout, pad)
    monkeypatch.setattr(attention, "prefers_padded_groups", lambda device: True)
    assert_same(samples.run_as(model, many, layout, pad), expected)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_every_span_stands_in_one_rectangle_less_than_twice_its_length(lengths) -> None:
    batch = collate([Encoded("x/0", [1] * n, ()) for n in lengths], "packed")
    found = group_by_length(batch.spans, batch.tokens.shape[1], torch.device("cpu"))
    assert sorted(span for part in found for span in part.spans) == sorted(batch.spans)
    assert all(part.length < 2 * (s.stop - s.start) for part in found for s in part.spans)
    flat = torch.cat([part.packed_index for part in found])
    assert sorted(flat.tolist()) == list(range(sum(lengths)))
