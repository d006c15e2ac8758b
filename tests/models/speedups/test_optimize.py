"""Quicker parts compute what the parts they stand for compute."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import NewGELUActivation

from finetune.batching.collate import collate
from finetune.models.attention.kernels import block_attention
from finetune.models.attention.masks import AttentionLayout
from finetune.models.speedups.dropout import FastDropout, draw_mask, fast_dropout
from finetune.models.speedups.optimize import replace_modules
from task_formats import Encoded

# -- dropout ---------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.sampled_from([0.1, 0.5, 0.9999999]), st.integers(0, 2**32))
def test_every_value_is_dropped_or_scaled_and_its_gradient_with_it(count, probability, seed):
    values = torch.arange(1.0, count + 1, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(seed)
    kept, factor = draw_mask(count, probability)
    torch.manual_seed(seed)
    found = fast_dropout(values, probability)
    assert torch.equal(found, values * kept * factor)
    assert set(kept.tolist()) <= {0, 1}
    (slope,) = torch.autograd.grad(found.sum(), values)
    assert torch.equal(slope, kept.double() * factor)


@pytest.mark.parametrize("probability", [0.0001, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_mean_are_those_asked_for(probability):
    torch.manual_seed(0)
    count = 1_000_000
    kept, factor = draw_mask(count, probability)
    dropped = 1 - 1 / factor
    assert dropped == pytest.approx(probability, abs=2**-17)
    spread = math.sqrt(count * dropped * (1 - dropped))
    assert abs(count - int(kept.sum()) - count * dropped) < 5 * spread


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept, _ = draw_mask(400_000, 0.5)
    patterns = kept.view(-1, 4).long() @ torch.tensor([1, 2, 4, 8])
    counts = torch.bincount(patterns, minlength=16)
    spread = math.sqrt(100_000 * (1 / 16) * (15 / 16))
    assert ((counts - 100_000 / 16).abs() < 5 * spread).all()


def test_nothing_is_dropped_without_training_or_at_zero():
    values = torch.randn(5, 3)
    assert FastDropout(0.5).eval()(values) is values
    assert torch.equal(fast_dropout(values, 0.0), values)


# -- attention -------------------------------------------------------------------------------------


def reference(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kept: Tensor, scaling: float
) -> Tensor:
    weights = (query @ key.transpose(-1, -2) * scaling + mask).softmax(-1)
    return (weights * kept) @ value


@pytest.mark.parametrize("layout", ["separate", "shared", "packed"])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_in_blocks_is_attention(layout, window, dropout):
    """Against one dense matrix over all columns of a row, with the very same weights dropped."""
    heads, width, scaling = 2, 4, 0.7
    batch = collate(
        [
            Encoded("a", [1] * 140, ([2] * 5, [3] * 9), 0),
            Encoded("b", [1] * 3, ([4],), 0),
            Encoded("c", [1] * 150, (), None),
        ],
        layout,
    )
    rows, columns = batch.tokens.shape
    attention_layout = AttentionLayout(batch)
    blocks = attention_layout.blocks(window, torch.float64)
    torch.manual_seed(1)
    parts = [
        torch.randn(rows, heads, columns, width, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]
    torch.manual_seed(2)
    found = block_attention(*parts, blocks, dropout, scaling)
    torch.manual_seed(2)
    flat, factor = draw_mask(heads * sum(block.mask.numel() for block in blocks), dropout)
    kept = torch.zeros(rows, heads, columns, columns, dtype=torch.float64)
    at = 0
    for block in blocks:
        size = heads * block.mask.numel()
        part = flat[at : at + size].view(heads, *block.mask.shape).double() * factor
        (row, columns_seen), (_, own) = block.keys, block.queries
        kept[row, :, own, columns_seen] = part
        at += size
    allowed = seen(batch, window)
    mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill_(~allowed, -1e300)
    expected = reference(*parts, mask[:, None], kept, scaling).transpose(1, 2)
    expected = expected * (batch.example >= 0)[..., None, None]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if not dropout:
        with torch.no_grad():
            alone = block_attention(*parts, blocks, 0.0, scaling)
        torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)
    outer = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, parts, outer),
        torch.autograd.grad(expected, parts, outer),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def seen(batch, window: int | None) -> Tensor:
    """(R, T, T) booleans by the one rule of attention_layout; a token of no example sees itself."""
    same = batch.example[:, :, None] == batch.example[:, None, :]
    own = (batch.ending[:, None, :] == -1) | (batch.ending[:, None, :] == batch.ending[:, :, None])
    back = batch.position_ids[:, :, None] - batch.position_ids[:, None, :]
    near = (back >= 0) & (back < (window or 10_000))
    return (same & own & near) | torch.eye(batch.tokens.shape[1], dtype=torch.bool)


def test_attention_in_blocks_takes_bfloat16_and_gives_it_back():
    batch = collate([Encoded("a", [1] * 6, ([2] * 3,), 0)], "packed")
    blocks = AttentionLayout(batch).blocks(None, torch.float32)
    parts = [torch.randn(1, 2, 9, 4).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = block_attention(*parts, blocks, 0.0, 0.5)
    exact = block_attention(*(part.float() for part in parts), blocks, 0.0, 0.5)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(found.sum(), parts))


# -- the exchange ----------------------------------------------------------------------------------


def test_the_one_kernel_of_gelu_is_the_eight_operations():
    values = torch.linspace(-9, 9, 4001, dtype=torch.float64, requires_grad=True)
    slow, quick = NewGELUActivation()(values), nn.GELU(approximate="tanh")(values)
    torch.testing.assert_close(quick, slow, rtol=1e-12, atol=1e-15)
    slopes = [torch.autograd.grad(found.sum(), values)[0] for found in (slow, quick)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).float()


@pytest.mark.parametrize("family", ["openai-gpt", "gpt2", "gpt_neo"])
def test_a_quickened_decoder_is_the_same_function(family: str, bases: Callable[[str], Path]):
    plain, quick = load(bases(family)), load(bases(family))
    replace_modules(quick)
    assert any(type(module) is FastDropout for module in quick.modules())
    assert not any(type(m) in (nn.Dropout, NewGELUActivation) for m in quick.modules())
    assert list(quick.state_dict()) == list(plain.state_dict())
    tokens = torch.randint(0, 200, (2, 17))
    for model in (plain, quick):
        model.eval()
    torch.testing.assert_close(quick(tokens).logits, plain(tokens).logits, rtol=1e-5, atol=1e-5)
