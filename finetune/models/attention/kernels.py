"""Attention over many sequences of a row, on a CPU, with a gradient of its own.

PyTorch's kernel falls back to slow arithmetic where weights are dropped out, is made for sequences
longer than these, and with a node for every step of every sequence the graph costs as much as the
arithmetic. Here all of a layer's attention is one node, which keeps nothing but the weights and
what was dropped of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.models.speedups.dropout import draw_mask


class AttentionBlock(NamedTuple):
    """Neighbouring queries of a sequence, and all keys of it up to the last of them."""

    keys: tuple[int, slice]
    """Their row, and their columns in it."""
    queries: tuple[int, slice]
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
    """(R, H, T, d) queries, keys and values to (R, T, H, d); zeros in columns of no block.

    Queries may have rows and columns of their own, as blocks say.

    Computed in the type of the masks, whatever comes in: products this small are slower in
    bfloat16.
    """
    with torch.autocast(query.device.type, enabled=False):
        if dropout == 0 and not torch.is_grad_enabled():
            return _attend(query, key, value, blocks, scaling)
        return _Attend.apply(query, key, value, blocks, dropout, scaling)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[AttentionBlock], scaling: float
) -> Tensor:
    """The same without a gradient: the weights of one block exist at a time."""
    rows, heads, columns, width = query.shape
    q, k, v = (part.to(blocks[0].mask.dtype) for part in (query, key, value))
    out = query.new_zeros(rows, columns, heads, width)
    for (row, seen), (home, own), mask in blocks:
        p = _weigh(q[home, :, own], k[row, :, seen], mask, scaling)
        out[home, own] = torch.bmm(p, v[row, :, seen]).transpose(0, 1)
    return out


def _weigh(
    queries: Tensor, keys: Tensor, mask: Tensor, scaling: float, room: Tensor | None = None
) -> Tensor:
    """(H, Q, d) queries and (H, K, d) keys to (H, Q, K) weights, in memory of their own or not."""
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scaling, out=room)
    return torch.softmax(scores, -1, out=scores)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        blocks: Sequence[AttentionBlock],
        dropout: float,
        scaling: float,
    ) -> Tensor:
        rows, heads, columns, width = query.shape
        q, k, v = (part.to(blocks[0].mask.dtype) for part in (query, key, value))
        cells = heads * sum(block.mask.numel() for block in blocks)
        weights = q.new_empty(cells)
        kept, factor = draw_mask(cells, dropout) if dropout else (None, 1.0)
        # Once for all blocks, and below so with what each block is scaled by.
        v = v * factor if dropout else v
        out = query.new_zeros(rows, columns, heads, width)
        for (home, own), (row, seen), mask, p, keep in _pieces(blocks, heads, weights, kept):
            _weigh(q[home, :, own], k[row, :, seen], mask, scaling, p)
            out[home, own] = torch.bmm(_drop(p, keep), v[row, :, seen]).transpose(0, 1)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.rest = blocks, factor, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, kept = ctx.saved_tensors
        blocks, factor, scaling = ctx.rest
        q, k, v, slope = (part.to(weights.dtype) for part in (query, key, value, outer[0]))
        dq, dk, dv = (_zeros(part) for part in (q, k, v))
        slope = slope.transpose(1, 2) * factor if kept is not None else slope.transpose(1, 2)
        for (home, own), (row, seen), _, p, keep in _pieces(blocks, q.shape[1], weights, kept):
            above = slope[home, :, own]
            dv[row, :, seen].add_(torch.bmm(_drop(p, keep).transpose(1, 2), above))
            dp = torch.bmm(above, v[row, :, seen].transpose(1, 2))
            dp = dp if keep is None else dp.mul_(keep)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            dq[home, :, own] = torch.bmm(ds, k[row, :, seen])
            dk[row, :, seen].add_(torch.bmm(ds.transpose(1, 2), q[home, :, own]))
        dtype = query.dtype
        dq, dk = dq.mul_(scaling), dk.mul_(scaling)
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), None, None, None


def _zeros(part: Tensor) -> Tensor:
    """(R, H, T, d) zeros that lie in memory as (R, T, H, d): as they are wanted next."""
    return part.new_zeros(part.transpose(1, 2).shape).transpose(1, 2)


def _drop(values: Tensor, kept: Tensor | None) -> Tensor:
    """The (H, Q, K) values that are kept: all of them where nothing is dropped."""
    return values if kept is None else values * kept


def _pieces(
    blocks: Sequence[AttentionBlock], heads: int, weights: Tensor, kept: Tensor | None
) -> Iterator[tuple[tuple[int, slice], tuple[int, slice], Tensor, Tensor, Tensor | None]]:
    """Of every block: queries, keys, mask, and its (H, Q, K) parts of two flat tensors."""
    at = 0
    for block in blocks:
        shape = (heads, *block.mask.shape)
        part = slice(at, at := at + heads * block.mask.numel())
        keep = None if kept is None else kept[part].view(shape)
        yield block.queries, block.keys, block.mask, weights[part].view(shape), keep
