"""Attention masks for packed batches."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from finetune.batching.collate import Batch, Span
from finetune.models.attention.kernels import AttentionBlock
from finetune.models.attention.padded_groups import PaddedGroup, combine_masks, group_by_length
from finetune.models.speedups.last_token import LastTokens

_BLOCK_QUERIES = 128
"""Queries of a block. Early queries of a long sequence need not be multiplied by late keys."""

Segments = list[tuple[Span | None, int]]
"""A row cut into spans and gaps (padding, None), each with its number of columns."""


class AttentionLayout:
    """Which token of a batch attends to which, as masks that are made once for all layers.

    A token attends to an earlier column of its own example that is prefix or of its own ending, and
    with a sliding window only to those fewer than `window` positions back.

    With `last_tokens_only`, only the state of each view's last token is read.
    """

    def __init__(self, batch: Batch, last_tokens_only: bool = False) -> None:
        self.spans = batch.spans
        self.last_tokens = (
            LastTokens(batch.spans, batch.tokens.shape[1]) if last_tokens_only else None
        )
        self._position_ids, self._ending = batch.position_ids, batch.ending
        self._masks: dict[Any, Tensor] = {}
        self._blocks: dict[Any, list[AttentionBlock]] = {}
        self._padded_groups: dict[Any, list[tuple[PaddedGroup, Tensor | None]]] = {}
        # Then one causal kernel computes all rows: what is on the right of a view is padding.
        self.one_view_per_row = all(
            span.start == 0 and len(span.endings) <= 1 for span in self.spans
        ) and len({span.row for span in self.spans}) == len(self.spans)
        self.longest = max(span.longest for span in self.spans)

    @cached_property
    def segments(self) -> list[Segments]:
        """Every row cut into spans and gaps."""
        rows, columns = self._position_ids.shape
        return [_segments(self.spans, row, columns) for row in range(rows)]

    def blocks(self, window: int | None, dtype: torch.dtype) -> list[AttentionBlock]:
        """All spans, cut into blocks of adjacent queries."""
        key = (window, dtype)
        if key not in self._blocks:
            masks = self._span_masks(window, dtype)
            self._blocks[key] = [
                block
                for span, mask in zip(self.spans, masks, strict=True)
                for block in _cut_into_blocks(span, mask)
            ]
        return self._blocks[key]

    def last_token_blocks(self, window: int | None, dtype: torch.dtype) -> list[AttentionBlock]:
        """A block per span; its queries are the last tokens of its views, all in one row."""
        assert self.last_tokens is not None
        blocks, stop = [], 0
        masks = self._span_masks(window, dtype)
        for (span, last), mask in zip(self.last_tokens.in_spans, masks, strict=True):
            start, stop = stop, stop + len(last)
            keys = (span.row, slice(span.start, span.stop))
            visible = mask[last, : span.stop - span.start]
            blocks.append(AttentionBlock(keys, (0, slice(start, stop)), visible))
        return blocks

    def padded_groups(
        self, window: int | None, dtype: torch.dtype
    ) -> list[tuple[PaddedGroup, Tensor | None]]:
        """All spans in groups of similar length, each with its mask; None where it is causal."""
        key = (window, dtype)
        if key not in self._padded_groups:
            device, columns = self._position_ids.device, self._position_ids.shape[1]
            self._padded_groups[key] = [
                (group, self._group_mask(group, window, dtype))
                for group in group_by_length(self.spans, columns, device)
            ]
        return self._padded_groups[key]

    def is_causal(self, span: Span, window: int | None) -> bool:
        """True where plain causal attention over the span's columns is the whole rule."""
        return len(span.endings) <= 1 and (window is None or span.longest <= window)

    def mask(self, span: Span, window: int | None, dtype: torch.dtype, cached: int = 0) -> Tensor:
        """(L, P + L) mask of a span of L columns after P `cached` tokens of a prefix.

        0 where a token attends to another, else the lowest number of the type. It is additive
        because a boolean mask is silently wrong under eager attention.
        """
        key = (span, window, dtype)
        if key not in self._masks:
            columns = slice(span.start, span.stop)
            position_ids = self._position_ids[span.row, columns]
            cache_ids = torch.arange(cached, device=position_ids.device)
            visible = torch.cat(
                [
                    _in_window(position_ids, cache_ids, window),
                    _visible(position_ids, self._ending[span.row, columns], window),
                ],
                dim=1,
            )
            self._masks[key] = _additive(visible, dtype)
        return self._masks[key]

    def _group_mask(
        self, group: PaddedGroup, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        if all(self.is_causal(span, window) for span in group.spans):
            return None
        return combine_masks(group, [self.mask(span, window, dtype) for span in group.spans])

    def _span_masks(self, window: int | None, dtype: torch.dtype) -> Iterator[Tensor]:
        """For every span a mask whose upper left corner is its own."""
        longest = max(span.stop - span.start for span in self.spans)
        causal = causal_mask(longest, dtype, self._position_ids.device)
        for span in self.spans:
            yield causal if self.is_causal(span, window) else self.mask(span, window, dtype)


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(L, L) additive mask of causal attention."""
    return _additive(torch.ones(length, length, dtype=torch.bool, device=device).tril_(), dtype)


def _segments(spans: tuple[Span, ...], row: int, columns: int) -> Segments:
    segments: Segments = []
    stop = 0
    for span in (span for span in spans if span.row == row):
        segments += [(None, span.start - stop)] if span.start > stop else []
        segments.append((span, span.stop - span.start))
        stop = span.stop
    return segments + ([(None, columns - stop)] if stop < columns else [])


def _cut_into_blocks(span: Span, mask: Tensor) -> list[AttentionBlock]:
    """A span's blocks: each takes its rows of the (L, L) mask, and no column after the last."""
    blocks = []
    for start in range(span.start, span.stop, _BLOCK_QUERIES):
        stop = min(start + _BLOCK_QUERIES, span.stop)
        visible = mask[start - span.start : stop - span.start, : stop - span.start]
        keys, queries = slice(span.start, stop), slice(start, stop)
        blocks.append(AttentionBlock((span.row, keys), (span.row, queries), visible))
    return blocks


def _visible(position_ids: Tensor, ending: Tensor, window: int | None) -> Tensor:
    """(L, L) booleans from (L,) positions and endings: does row attend to column?"""
    same = (ending[None, :] == -1) | (ending[None, :] == ending[:, None])
    return _in_window(position_ids, position_ids, window) & same


def _in_window(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(Q, K) booleans from positions: is the key not later, and in the window?"""
    distance = queries[:, None] - keys[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, lowest)
