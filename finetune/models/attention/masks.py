"""Who sees whom in a batch: its spans, and the masks, blocks and rectangles made of them."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from finetune.batching.collate import Batch, Span
from finetune.models.attention.kernels import AttentionBlock
from finetune.models.attention.rectangles import PaddedGroup, fill, group_by_length
from finetune.models.speedups.last_token import LastTokens

_QUERIES = 128
"""Rows of a block: a long sequence's early queries need not meet its late keys."""

Pieces = list[tuple[Span | None, int]]
"""A row cut into spans and gaps (padding), each with its number of columns."""


class AttentionLayout:
    """The spans of one batch, and the masks that its attention layers ask for, each made once.

    A token sees an earlier column of its own example that is prefix or of its own ending, and
    with a sliding window only those fewer than `window` places back.
    """

    def __init__(self, batch: Batch, last_tokens_only: bool = False) -> None:
        self.spans = batch.spans
        self.ends = LastTokens(batch.spans, batch.tokens.shape[1]) if last_tokens_only else None
        """Where nothing but the views' last states is read."""
        self._place, self._ending = batch.position_ids, batch.ending
        self._masks: dict[Any, Tensor] = {}
        self._blocks: dict[Any, list[AttentionBlock]] = {}
        self._rectangles: dict[Any, list[tuple[PaddedGroup, Tensor | None]]] = {}
        # One causal call serves all rows when each starts with the one view it holds: what stands
        # to the right of it is padding, and nobody looks right.
        self.rowwise = all(
            span.start == 0 and len(span.endings) <= 1 for span in self.spans
        ) and len({span.row for span in self.spans}) == len(self.spans)
        self.longest = max(span.longest for span in self.spans)

    @cached_property
    def pieces(self) -> list[Pieces]:
        """Every row cut into spans and gaps; few ways of attending ask for it."""
        rows, columns = self._place.shape
        return [_pieces(self.spans, r, columns) for r in range(rows)]

    def blocks(self, window: int | None, dtype: torch.dtype) -> list[AttentionBlock]:
        """All spans, cut into blocks of neighbouring queries with their masks."""
        key = (window, dtype)
        if key not in self._blocks:
            masks = self._all_masks(window, dtype)
            self._blocks[key] = [
                block
                for span, mask in zip(self.spans, masks, strict=True)
                for block in _cut(span, mask)
            ]
        return self._blocks[key]

    def last_blocks(self, window: int | None, dtype: torch.dtype) -> list[AttentionBlock]:
        """A block of each span whose queries are its views' last tokens, told off in one row."""
        assert self.ends is not None
        found, at = [], 0
        masks = self._all_masks(window, dtype)
        for (span, own), mask in zip(self.ends.parts, masks, strict=True):
            keys = slice(span.start, span.stop)
            queries = slice(at, at := at + len(own))
            seen = mask[own, : span.stop - span.start]
            found.append(AttentionBlock((span.row, keys), (0, queries), seen))
        return found

    def rectangles(
        self, window: int | None, dtype: torch.dtype
    ) -> list[tuple[PaddedGroup, Tensor | None]]:
        """All spans in rectangles, each with its mask; None where it is plain causal."""
        key = (window, dtype)
        if key not in self._rectangles:
            device, columns = self._place.device, self._place.shape[1]
            self._rectangles[key] = [
                (found, self._mask_all(found, window, dtype))
                for found in group_by_length(self.spans, columns, device)
            ]
        return self._rectangles[key]

    def _mask_all(
        self, rectangle: PaddedGroup, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        if all(self.is_causal(span, window) for span in rectangle.spans):
            return None
        return fill(rectangle, [self.mask(span, window, dtype) for span in rectangle.spans])

    def _all_masks(self, window: int | None, dtype: torch.dtype) -> Iterator[Tensor]:
        """For every span a mask whose upper left corner is its own."""
        longest = max(span.stop - span.start for span in self.spans)
        plain = causal_mask(longest, dtype, self._place.device)
        for span in self.spans:
            yield plain if self.is_causal(span, window) else self.mask(span, window, dtype)

    def is_causal(self, span: Span, window: int | None) -> bool:
        """True when plain causal attention over the span's columns is its whole rule."""
        return len(span.endings) <= 1 and (window is None or span.longest <= window)

    def mask(
        self, span: Span, window: int | None, dtype: torch.dtype, remembered: int = 0
    ) -> Tensor:
        """(L, P + L) additive mask over P tokens remembered and the span's columns.

        0 where seen, the dtype's lowest where not. Additive because a boolean mask is silently
        wrong under eager attention (facts, trap 11).
        """
        key = (span, window, dtype)
        if key not in self._masks:
            columns = slice(span.start, span.stop)
            place, ending = self._place[span.row, columns], self._ending[span.row, columns]
            before = torch.arange(remembered, device=place.device)
            back = place[:, None] - before[None, :]
            near = back >= 0 if window is None else (back >= 0) & (back < window)
            seen = torch.cat([near, _seen(place, ending, window)], dim=1)
            self._masks[key] = _additive(seen, dtype)
        return self._masks[key]


def _pieces(spans: tuple[Span, ...], row: int, width: int) -> Pieces:
    pieces: Pieces = []
    at = 0
    for span in (span for span in spans if span.row == row):
        pieces += [(None, span.start - at)] if span.start > at else []
        pieces.append((span, span.stop - span.start))
        at = span.stop
    return pieces + ([(None, width - at)] if at < width else [])


def _cut(span: Span, mask: Tensor) -> list[AttentionBlock]:
    """A span's blocks; of the (L, L) mask each takes its rows and no column after the last."""
    found = []
    for first in range(span.start, span.stop, _QUERIES):
        stop = min(first + _QUERIES, span.stop)
        part = mask[first - span.start : stop - span.start, : stop - span.start]
        keys, queries = slice(span.start, stop), slice(first, stop)
        found.append(AttentionBlock((span.row, keys), (span.row, queries), part))
    return found


def _seen(place: Tensor, ending: Tensor, window: int | None) -> Tensor:
    """(L, L) boolean: may the token of a row see the token of a column?"""
    back = place[:, None] - place[None, :]
    same = (ending[None, :] == -1) | (ending[None, :] == ending[:, None])
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return near & same


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(L, L) additive mask of plain causal attention."""
    return _additive(torch.ones(length, length, dtype=torch.bool, device=device).tril_(), dtype)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest)
