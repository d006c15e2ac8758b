"""Attention in blocks against one dense matrix of attention weights."""

import pytest
import torch
from torch import Tensor

from finetune.batching.collate import Batch, collate
from finetune.models.attention.kernels import block_attention
from finetune.models.attention.masks import AttentionLayout
from finetune.models.speedups.dropout import draw_mask
from task_formats import Encoded
from tests.support.samples import LAYOUTS


def visible(batch: Batch, window: int | None) -> Tensor:
    """(R, T, T) booleans by the rule of Batch; a column of padding sees itself."""
    same = batch.example_id[:, :, None] == batch.example_id[:, None, :]
    ending = batch.ending_id
    shared = (ending[:, None, :] == -1) | (ending[:, None, :] == ending[:, :, None])
    distance = batch.position_ids[:, :, None] - batch.position_ids[:, None, :]
    near = (distance >= 0) & (distance < (window or 10_000))
    return (same & shared & near) | torch.eye(batch.tokens.shape[1], dtype=torch.bool)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_blocks_give_dense_attention_with_the_same_dropped_weights(layout, window, dropout):
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
    blocks = AttentionLayout(batch).blocks(window, torch.float64)
    torch.manual_seed(1)
    shape = (rows, heads, columns, width)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.manual_seed(2)
    output = block_attention(*inputs, blocks, dropout, scaling)
    torch.manual_seed(2)
    sizes = [heads * block.mask.numel() for block in blocks]
    flat, factor = draw_mask(sum(sizes), dropout)
    kept = torch.zeros(rows, heads, columns, columns, dtype=torch.float64)
    for block, values in zip(blocks, flat.split(sizes), strict=True):
        (row, keys), (_, queries) = block.keys, block.queries
        kept[row, :, queries, keys] = values.view(heads, *block.mask.shape).double() * factor
    query, key, value = inputs
    mask = torch.where(visible(batch, window), 0.0, -torch.inf)[:, None]
    weights = (query @ key.transpose(-1, -2) * scaling + mask).softmax(-1)
    expected = ((weights * kept) @ value).transpose(1, 2) * (batch.example_id >= 0)[..., None, None]
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    if not dropout:
        with torch.no_grad():
            alone = block_attention(*inputs, blocks, 0.0, scaling)
        torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)
    outer = torch.randn_like(output)
    gradients = (torch.autograd.grad(x, inputs, outer) for x in (output, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_bfloat16_is_computed_in_float32_and_returned_as_bfloat16():
    batch = collate([Encoded("a", [1] * 6, ([2] * 3,), 0)], "packed")
    blocks = AttentionLayout(batch).blocks(None, torch.float32)
    inputs = [torch.randn(1, 2, 9, 4).bfloat16().requires_grad_() for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        output = block_attention(*inputs, blocks, 0.0, 0.5)
    exact = block_attention(*(x.float() for x in inputs), blocks, 0.0, 0.5)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, exact.bfloat16())
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(output.sum(), inputs))
