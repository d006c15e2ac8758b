"""Which decoders take packed attention, and that every way to compute it gives the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.batching.collate import collate
from finetune.models.attention import interface
from finetune.models.attention.interface import ATTENTION_NAME, packed_attention
from finetune.models.attention.masks import AttentionLayout
from finetune.models.attention.padded_groups import group_by_length
from task_formats import Encoded, UsageError
from tests.support import samples
from tests.support.families import FAMILIES, PACKED_ATTENTION
from tests.support.samples import LAYOUTS, assert_same


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_take_packed_attention(family: str, bases) -> None:
    attention = samples.load(bases(family)).decoder.config._attn_implementation
    assert (attention == ATTENTION_NAME) == (family in PACKED_ATTENTION)


def test_an_unknown_argument_is_refused_and_a_harmless_one_is_not() -> None:
    layout = AttentionLayout(collate([Encoded("x/0", [1, 2, 3], ())], "packed"))
    inputs = [torch.randn(1, 2, 3, 4) for _ in range(3)]

    def attend(**options: object) -> torch.Tensor:
        module = torch.nn.Module()
        return packed_attention(module, *inputs, None, attention_layout=layout, **options)[0]

    assert torch.equal(attend(is_causal=True, use_cache=False, s_aux=None), attend())
    with pytest.raises(UsageError, match="does not support s_aux") as caught:
        attend(s_aux=torch.zeros(2))
    assert caught.value.where == "base.path"


def test_attention_dropout_takes_another_kernel_with_the_same_result(bases) -> None:
    model, many, pad = samples.prepare("multiple_choice", bases("gpt2"))
    expected = samples.run_as(model, many, "shared", pad)
    dropouts = [m.attn_dropout for m in model.modules() if hasattr(m, "attn_dropout")]
    for dropout in dropouts:
        dropout.p = 1e-12
    for layout in LAYOUTS:
        assert_same(samples.run_as(model, many, layout, pad), expected)
    for dropout in dropouts:
        dropout.p = 0.5
    difference = samples.run_as(model, many, "shared", pad).logits - expected.logits
    assert difference[expected.logits.isfinite()].abs().max() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", PACKED_ATTENTION)
def test_padded_groups_give_the_same(family: str, layout, bases, monkeypatch) -> None:
    """The path of GPUs."""
    model, many, pad = samples.prepare("multiple_choice", bases(family), count=7)
    expected = samples.run_as(model, many, layout, pad)
    monkeypatch.setattr(interface, "prefers_padded_groups", lambda device: True)
    assert_same(samples.run_as(model, many, layout, pad), expected)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_every_span_is_in_one_group_of_less_than_twice_its_length(lengths) -> None:
    batch = collate([Encoded("x/0", [1] * n, ()) for n in lengths], "packed")
    groups = group_by_length(batch.spans, batch.tokens.shape[1], torch.device("cpu"))
    assert sorted(span for group in groups for span in group.spans) == sorted(batch.spans)
    assert all(g.length < 2 * (s.stop - s.start) for g in groups for s in g.spans)
    index = torch.cat([group.packed_index for group in groups])
    assert sorted(index.tolist()) == list(range(sum(lengths)))
