"""All layouts, micro-batches and pad tokens give the same logits, losses and gradients."""

from itertools import pairwise

import pytest
import torch

from finetune.batching.collate import collate, count_totals
from tests.support import samples
from tests.support.families import FAMILIES, OWN_ATTENTION, PACKED_ATTENTION
from tests.support.samples import KINDS, LAYOUTS, assert_same


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("family", PACKED_ATTENTION)
def test_all_layouts_give_the_same_logits_losses_and_gradients(family, name, bases) -> None:
    model, many, pad = samples.prepare(name, bases(family))
    separate, shared, packed = (samples.run_as(model, many, layout, pad) for layout in LAYOUTS)
    assert_same(shared, separate)
    assert_same(packed, separate)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_micro_batches_of_any_size_add_up_to_the_update(name: str, layout, bases) -> None:
    model, many, pad = samples.prepare(name, bases("gpt2"), count=32)
    totals = count_totals(many)
    whole = samples.run_as(model, many, layout, pad)
    # Unequal ones too: weights belong to the whole update.
    for cuts in ((0, 8, 16, 24, 32), (0, 1, 20, 32)):
        batches = [collate(many[a:b], layout, pad, totals) for a, b in pairwise(cuts)]
        result = samples.run(model, batches)
        torch.testing.assert_close(result.losses, whole.losses, rtol=1e-5, atol=1e-6)
        assert samples.distance(result.gradients, whole.gradients) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["multiple_choice", "similarity"])
def test_the_pad_token_changes_nothing(family: str, name: str, bases) -> None:
    model, many, pad = samples.prepare(name, bases(family))
    expected = samples.run_as(model, many, "separate", pad)
    assert_same(samples.run_as(model, many, "separate", 5), expected)


@pytest.mark.parametrize("family", OWN_ATTENTION)
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_base_with_its_own_attention_reads_separate_rows_only(family: str, layout, bases) -> None:
    model, many, pad = samples.prepare("multiple_choice", bases(family))
    with pytest.raises(ValueError, match="separate"):
        model(collate(many, layout, pad))
