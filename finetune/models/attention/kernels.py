"""Attention over many sequences of a row on a CPU, as one node of the autograd graph.

PyTorch's fused kernel is slow where attention weights are dropped, and made for longer sequences.
With a graph node for every step of every sequence, autograd would cost as much as the arithmetic.
This kernel keeps only the attention weights and the dropout mask for its backward pass.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.models.speedups.dropout import draw_mask


class AttentionBlock(NamedTuple):
    """Adjacent queries of a sequence, and all its keys up to the last of these queries."""

    keys: tuple[int, slice]
    """Row and columns of the keys."""
    queries: tuple[int, slice]
    """Row and columns of the queries."""
    mask: Tensor
    """(queries, keys) additive, float32 or float64."""


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Sequence[AttentionBlock],
    dropout: float,
    scaling: float,
) -> Tensor:
    """Computes attention block by block, in the type of the masks.

    In bfloat16, products as small as these would be slower.

    Args:
        query: (Q, H, S, d). Rows and columns may differ from those of the keys.
        key: (R, H, T, d).
        value: (R, H, T, d'). Its width may differ from that of queries and keys.
        blocks: Which queries attend to which keys.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores.

    Returns:
        (Q, S, H, d') in the type of the queries, zeros in columns of no block.
    """
    with torch.autocast(query.device.type, enabled=False):
        keep_weights = torch.is_grad_enabled()
        return _BlockAttention.apply(query, key, value, blocks, dropout, scaling, keep_weights)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Sequence[AttentionBlock],
        dropout: float,
        scaling: float,
        keep_weights: bool,
    ) -> Tensor:
        rows, heads, columns, _ = query.shape
        q, k, v = (x.to(blocks[0].mask.dtype) for x in (query, key, value))
        count = heads * sum(block.mask.numel() for block in blocks)
        weights = q.new_empty(count) if keep_weights else None
        kept, factor = draw_mask(count, dropout) if dropout else (None, 1.0)
        # Dropout's factor is applied once, to the values, and in the backward pass likewise.
        v = v * factor if dropout else v
        out = query.new_zeros(rows, columns, heads, value.shape[-1])
        for block, part, keep in _with_weights(blocks, heads, weights, kept):
            (row, seen), (query_row, own), mask = block
            keys = k[row, :, seen].transpose(1, 2)
            scores = torch.baddbmm(mask, q[query_row, :, own], keys, alpha=scaling, out=part)
            p = torch.softmax(scores, -1, out=scores)
            out[query_row, own] = torch.bmm(_drop(p, keep), v[row, :, seen]).transpose(0, 1)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.constants = blocks, factor, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        blocks, factor, scaling = ctx.constants
        q, k, v, d_out = (x.to(weights.dtype) for x in (query, key, value, outer[0]))
        dq, dk, dv = (_zeros_like(x) for x in (q, k, v))
        d_out = d_out.transpose(1, 2) * factor if kept is not None else d_out.transpose(1, 2)
        for block, p, keep in _with_weights(blocks, q.shape[1], weights, kept):
            (row, seen), (query_row, own), _ = block
            d_block = d_out[query_row, :, own]
            dv[row, :, seen].add_(torch.bmm(_drop(p, keep).transpose(1, 2), d_block))
            dp = torch.bmm(d_block, v[row, :, seen].transpose(1, 2))
            dp = dp if keep is None else dp.mul_(keep)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[query_row, :, own] = torch.bmm(ds, k[row, :, seen])
            dk[row, :, seen].add_(torch.bmm(ds.transpose(1, 2), q[query_row, :, own]))
        dtype = query.dtype
        dq, dk = dq.mul_(scaling), dk.mul_(scaling)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), None, None, None, None


def _zeros_like(values: Tensor) -> Tensor:
    """(R, H, T, d) zeros in the memory order of (R, T, H, d), which is needed next."""
    return values.new_zeros(values.transpose(1, 2).shape).transpose(1, 2)


def _drop(weights: Tensor, kept: Tensor | None) -> Tensor:
    """(H, Q, K) weights after dropout, without its factor."""
    return weights if kept is None else weights * kept


def _with_weights(
    blocks: Sequence[AttentionBlock], heads: int, *flat: Tensor | None
) -> Iterator[tuple[Any, ...]]:
    """Every block with its (H, Q, K) part of each flat tensor: weights, and what is kept."""
    stop = 0
    for block in blocks:
        shape = (heads, *block.mask.shape)
        start, stop = stop, stop + math.prod(shape)
        yield block, *(None if x is None else x[start:stop].view(shape) for x in flat)
