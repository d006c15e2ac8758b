"""Attention over sequences of unequal length in few large kernels, for GPUs.

A GPU takes about as long to start a kernel as to run a small one, so a kernel for each sequence of
a packed row is mostly waiting. Here sequences of similar length are padded into a rectangle for
this one operation. Everything else computes real tokens only.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.batching.collate import Span, copy_to_device

AttentionKernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention over (S, H, L, d) queries, keys and values with a mask; None for causal attention."""


class PaddedGroup(NamedTuple):
    """S spans of similar length, padded to L columns."""

    spans: tuple[Span, ...]
    length: int
    """L."""
    padded_index: Tensor
    """(M,) flat indices into (S, L) of the columns that hold a token."""
    packed_index: Tensor
    """(M,) flat indices into (R, T) of the same tokens."""


def group_by_length(spans: Sequence[Span], columns: int, device: torch.device) -> list[PaddedGroup]:
    """Groups spans of rows of T `columns`; each is longer than half the longest of its group."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.length, reverse=True):
        if not groups or 2 * span.length <= groups[-1][0].length:
            groups.append([])
        groups[-1].append(span)
    return [_padded_group(group, columns, device) for group in groups]


def padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[tuple[PaddedGroup, Tensor | None]],
    kernel: AttentionKernel,
) -> Tensor:
    """(R, H, T, d) queries, keys, values to (R, T, H, d), with one call of the kernel per group.

    Columns that are in no group give zeros. Each group comes with its mask.
    """
    rows, heads, columns, _ = query.shape
    packed = [x.transpose(1, 2).reshape(rows * columns, heads, -1) for x in (query, key, value)]
    out = packed[2].new_zeros(packed[2].shape)
    for group, mask in groups:
        q, k, v = (_pad(x, group) for x in packed)
        states = kernel(q, k, v, mask).transpose(1, 2).flatten(0, 1)
        states = states.index_select(0, group.padded_index)
        # Every token is copied exactly once, so gradients do not depend on an order of additions.
        out = out.index_copy(0, group.packed_index, states.to(out.dtype))
    return out.view(rows, columns, heads, -1)


def combine_masks(group: PaddedGroup, masks: Sequence[Tensor]) -> Tensor:
    """(S, 1, L, L) from an (l, l) additive mask per span; rows of padding mask nothing."""
    length = group.length
    combined = masks[0].new_zeros(len(masks), 1, length, length)
    for row, mask in zip(combined, masks, strict=True):
        size = len(mask)
        row[0, :size, :size] = mask
        row[0, :size, size:] = torch.finfo(mask.dtype).min
    return combined


def _pad(values: Tensor, group: PaddedGroup) -> Tensor:
    """(R·T, H, d) to (S, H, L, d), zeros where there is no token."""
    count, length = len(group.spans), group.length
    padded = values.new_zeros(count * length, *values.shape[1:])
    padded = padded.index_copy(0, group.padded_index, values.index_select(0, group.packed_index))
    return padded.view(count, length, *values.shape[1:]).transpose(1, 2)


def _padded_group(spans: Sequence[Span], columns: int, device: torch.device) -> PaddedGroup:
    length = spans[0].length
    padded = [row * length + n for row, span in enumerate(spans) for n in range(span.length)]
    packed = [span.row * columns + span.start + n for span in spans for n in range(span.length)]
    indices = copy_to_device(torch.tensor([padded, packed]), device)
    return PaddedGroup(tuple(spans), length, *indices)
