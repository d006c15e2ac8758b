"""Attention over sequences of unequal length in few large calls, for devices that want those.

A graphics card takes about as long to start a kernel as to run a small one, so a call for each
sequence of a packed row is mostly waiting. Here sequences of like length stand in a rectangle,
padded for this one operation; everything else still sees real tokens alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.batching.collate import Span

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention over (S, H, L, d) queries, keys, values, and a mask where it is not plain causal."""


class PaddedGroup(NamedTuple):
    """S spans in rows of L places."""

    spans: tuple[Span, ...]
    length: int
    inside: Tensor
    """(M,) flat indices into (S, L) of the places that hold a token."""
    flat: Tensor
    """(M,) flat indices into (R, T) of those tokens."""


def group_by_length(spans: Sequence[Span], columns: int, device: torch.device) -> list[PaddedGroup]:
    """All spans of (R, T) rows of `columns`, none in a rectangle of twice its length."""
    return [_rectangle(group, columns, device) for group in _groups(spans)]


def padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rectangles: Sequence[tuple[PaddedGroup, Tensor | None]],
    core: Core,
) -> Tensor:
    """(R, H, T, d) queries, keys, values to (R, T, H, d); zeros in columns of no span."""
    rows, heads, columns, width = query.shape
    flat = [part.transpose(1, 2).reshape(rows * columns, heads, -1) for part in (query, key, value)]
    out = flat[2].new_zeros(flat[2].shape)
    for rectangle, mask in rectangles:
        q, k, v = (_lay(part, rectangle) for part in flat)
        found = core(q, k, v, mask)
        found = found.transpose(1, 2).flatten(0, 1).index_select(0, rectangle.inside)
        # Every token is copied once, there and back: so gradients never depend on an order.
        out = out.index_copy(0, rectangle.flat, found.to(out.dtype))
    return out.view(rows, columns, heads, width)


def fill(rectangle: PaddedGroup, masks: Sequence[Tensor]) -> Tensor:
    """(S, 1, L, L) from a span's (l, l) additive mask each; padding sees what it likes."""
    length = rectangle.length
    found = masks[0].new_zeros(len(masks), 1, length, length)
    for row, mask in zip(found, masks, strict=True):
        size = len(mask)
        row[0, :size, :size] = mask
        row[0, :size, size:] = torch.finfo(mask.dtype).min
    return found


def _lay(part: Tensor, rectangle: PaddedGroup) -> Tensor:
    """(R·T, H, d) to (S, H, L, d), zeros where there is no token."""
    count, length = len(rectangle.spans), rectangle.length
    laid = part.new_zeros(count * length, *part.shape[1:])
    laid = laid.index_copy(0, rectangle.inside, part.index_select(0, rectangle.flat))
    return laid.view(count, length, *part.shape[1:]).transpose(1, 2)


def _groups(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """By length, the longest first; each more than half as long as its group's first."""
    group: list[Span] = []
    for span in sorted(spans, key=_length, reverse=True):
        if group and 2 * _length(span) <= _length(group[0]):
            yield group
            group = []
        group.append(span)
    yield group


def _rectangle(spans: Sequence[Span], columns: int, device: torch.device) -> PaddedGroup:
    length = _length(spans[0])
    inside = [row * length + n for row, span in enumerate(spans) for n in range(_length(span))]
    flat = [
        span.row * columns + column for span in spans for column in range(span.start, span.stop)
    ]
    places = torch.tensor([inside, flat])
    if device.type == "cuda":
        places = places.pin_memory()
    return PaddedGroup(tuple(spans), length, *places.to(device, non_blocking=True))


def _length(span: Span) -> int:
    return span.stop - span.start
