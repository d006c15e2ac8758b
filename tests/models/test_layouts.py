"""All layouts, micro-batches and kinds of padding give the same logits, losses and gradients."""

from itertools import pairwise

import pytest
import torch

from finetune.batching.collate import Batch, collate, count_totals
from tests.support import samples
from tests.support.families import FAMILIES, OWN_ATTENTION, PACKED_ATTENTION
from tests.support.samples import KINDS, LAYOUTS, assert_same


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("family", PACKED_ATTENTION)
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
def test_micro_batches_of_any_size_add_up_to_the_update(name: str, layout, bases) -> None:
    kind, base = KINDS[name], samples.load(bases("gpt2"))
    many = samples.examples(kind, base, count=32, max_tokens=20)
    model, totals = samples.task_model(kind, base), count_totals(many)
    whole = samples.run_as(model, many, layout, base.task_tokens.pad_id)
    # Unequal ones too: weights belong to the whole update.
    for cuts in ((0, 8, 16, 24, 32), (0, 1, 20, 32)):
        batches = [
            collate(many[start:stop], layout, base.task_tokens.pad_id, totals)
            for start, stop in pairwise(cuts)
        ]
        result = samples.run(model, batches)
        torch.testing.assert_close(result.losses, whole.losses, rtol=1e-5, atol=1e-6)
        assert samples.distance(result.gradients, whole.gradients) < 1e-5


def padded_left(batch: Batch, pad: int) -> Batch:
    """The same rows with at least two columns of padding on their left."""
    height, width = batch.tokens.shape
    shifts = [2 + width - span.stop for span in batch.spans]
    assert len(shifts) == height, "one span a row"

    def push(grid: torch.Tensor, value: int) -> torch.Tensor:
        moved = torch.full((height, width + 2), value)
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
    # No token attends to padding, whatever the pad token is.
    other = samples.run(model, [collate(many, "separate", 5)])
    assert_same(other, right)
    with torch.no_grad():
        for n, example in enumerate(many):
            parts = [example._replace(endings=(ending,)) for ending in example.endings]
            alone = [
                model.backbone.hidden_states(collate([part], "separate", pad)) for part in parts
            ]
            features = torch.stack([states[-1] for states in alone])[None]
            logits = model.head(features, torch.ones(1, len(parts), dtype=torch.bool))[0]
            torch.testing.assert_close(logits, right.logits[n, : len(logits)], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", OWN_ATTENTION)
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_base_with_its_own_attention_reads_separate_rows_only(family: str, layout, bases) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    model = samples.task_model(kind, base)
    with pytest.raises(ValueError, match="separate"):
        model(collate(samples.examples(kind, base), layout, base.task_tokens.pad_id))
