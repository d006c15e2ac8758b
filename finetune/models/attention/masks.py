"""Attention masks for packed batches."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from finetune.batching.collate import Batch, Span
from finetune.models.attention.kernels import AttentionBlock
from finetune.models.attention.padded_groups import PaddedGroup, combine_masks, group_by_length
from finetune.models.attention.varlen import TextBounds
from finetune.models.speedups.last_token import LastTokens

_BLOCK_QUERIES = 128
"""Queries of a block. Early queries of a long sequence need not be multiplied by late keys."""


class AttentionLayout:
    """Which token of a batch attends to which, as masks that are made once for all layers.

    A token attends to an earlier column of its own span that is prefix or of its own ending, and
    with a sliding window only to those fewer than `window` positions back. Columns of other spans
    are never keys: attention is computed span by span.

    With `last_tokens_only`, only the state of each view's last token is read.
    """

    def __init__(self, batch: Batch, last_tokens_only: bool = False) -> None:
        self.spans, self._shape = batch.spans, batch.tokens.shape
        self.last_tokens = LastTokens(batch.spans, self._shape[1]) if last_tokens_only else None
        self._position_ids, self._ending = batch.position_ids, batch.ending_id
        self._masks: dict[Any, Tensor] = {}
        self._blocks: dict[Any, list[AttentionBlock]] = {}
        self._padded_groups: dict[Any, list[tuple[PaddedGroup, Tensor | None]]] = {}
        # Then one causal kernel computes all rows: what is on the right of a view is padding.
        self.one_view_per_row = all(s.start == 0 and len(s.ending_lengths) <= 1 for s in self.spans)
        self.longest = max(span.longest for span in self.spans)

    @cached_property
    def segments(self) -> list[tuple[Span | None, int]]:
        """The R·T columns of all rows cut into spans and gaps (None), each with its length."""
        segments: list[tuple[Span | None, int]] = []
        (rows, columns), stop = self._shape, 0
        for span in self.spans:
            start = span.row * columns + span.start
            segments += [(None, start - stop), (span, span.length)]
            stop = start + span.length
        return [segment for segment in (*segments, (None, rows * columns - stop)) if segment[1]]

    def is_packed_row(self, window: int | None) -> bool:
        """True where there is one row without padding, and no window that hides a token."""
        return self._fills_one_row and (window is None or self.longest <= window)

    @cached_property
    def _fills_one_row(self) -> bool:
        return self._shape[0] == 1 and sum(span.length for span in self.spans) == self._shape[1]

    @cached_property
    def text_bounds(self) -> TextBounds:
        """A packed row as texts with causal attention: prefixes, and each ending after its prefix.

        A prefix and its only ending are one text.
        """
        queries: list[int] = []
        keys: list[list[range]] = []
        for span in self.spans:
            views = list(_view_columns(span))
            if len(views) > 1:
                queries += [span.prefix_length, *span.ending_lengths]
                keys += [views[0][:1], *views]
            else:
                queries.append(span.length)
                keys.append([range(span.start, span.stop)])
        return TextBounds.of(queries, keys, self._position_ids.device, is_causal=True)

    @cached_property
    def last_token_bounds(self) -> TextBounds:
        """The same where each view's last token is its only query; it attends to all its keys."""
        keys = [view for span in self.spans for view in _view_columns(span)]
        return TextBounds.of([1] * len(keys), keys, self._position_ids.device, is_causal=False)

    def blocks(self, window: int | None, dtype: torch.dtype) -> list[AttentionBlock]:
        """All spans, cut into blocks of adjacent queries."""
        key = (window, dtype)
        if key not in self._blocks:
            self._blocks[key] = [
                _make_block(span, mask, start)
                for span, mask in zip(self.spans, self._span_masks(window, dtype), strict=True)
                for start in range(0, span.length, _BLOCK_QUERIES)
            ]
        return self._blocks[key]

    def last_token_blocks(self, window: int | None, dtype: torch.dtype) -> list[AttentionBlock]:
        """A block per span; its queries are the last tokens of its views, all in one row."""
        assert self.last_tokens is not None
        blocks, stop = [], 0
        masks = self._span_masks(window, dtype)
        for span, last, mask in zip(self.spans, self.last_tokens.in_spans, masks, strict=True):
            start, stop = stop, stop + len(last)
            keys = (span.row, slice(span.start, span.stop))
            blocks.append(AttentionBlock(keys, (0, slice(start, stop)), mask[last, : span.length]))
        return blocks

    def padded_groups(
        self, window: int | None, dtype: torch.dtype
    ) -> list[tuple[PaddedGroup, Tensor | None]]:
        """All spans in groups of similar length, each with its mask; None where it is causal."""
        key = (window, dtype)
        if key not in self._padded_groups:
            groups = group_by_length(self.spans, self._shape[1], self._position_ids.device)
            self._padded_groups[key] = [
                (
                    group,
                    None
                    if all(self.is_causal(span, window) for span in group.spans)
                    else combine_masks(
                        group, [self.mask(span, window, dtype) for span in group.spans]
                    ),
                )
                for group in groups
            ]
        return self._padded_groups[key]

    def is_causal(self, span: Span, window: int | None) -> bool:
        """True where plain causal attention over the span's columns is the whole rule."""
        return len(span.ending_lengths) <= 1 and (window is None or span.longest <= window)

    def mask(self, span: Span, window: int | None, dtype: torch.dtype, cached: int = 0) -> Tensor:
        """(L, P + L) mask of a span of L columns after P `cached` tokens of a prefix.

        0 where a token attends to another, else the lowest number of the type. It is additive
        because a boolean mask is silently wrong under eager attention.
        """
        key = (span, window, dtype)
        if key not in self._masks:
            position_ids, ending = (
                x[span.row, span.start : span.stop] for x in (self._position_ids, self._ending)
            )
            keys = torch.cat([torch.arange(cached, device=position_ids.device), position_ids])
            distance = position_ids[:, None] - keys
            visible = (distance >= 0) & (distance < (window or torch.inf))
            visible[:, cached:] &= (ending == -1) | (ending == ending[:, None])
            self._masks[key] = _additive(visible, dtype)
        return self._masks[key]

    def _span_masks(self, window: int | None, dtype: torch.dtype) -> Iterator[Tensor]:
        """For every span a mask whose upper left corner is its own."""
        longest = max(span.length for span in self.spans)
        causal = causal_mask(longest, dtype, self._position_ids.device)
        for span in self.spans:
            yield causal if self.is_causal(span, window) else self.mask(span, window, dtype)


def causal_mask(length: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(L, L) additive mask of causal attention."""
    return _additive(torch.ones(length, length, dtype=torch.bool, device=device).tril_(), dtype)


def _view_columns(span: Span) -> Iterator[list[range]]:
    """The columns of each view: those of its prefix and those of its ending."""
    ending = span.start + span.prefix_length
    for length in span.ending_lengths:
        yield [range(span.start, span.start + span.prefix_length), range(ending, ending + length)]
        ending += length


def _make_block(span: Span, mask: Tensor, start: int) -> AttentionBlock:
    """Queries from column `start` of a span, with their rows of its mask and no later column."""
    stop = min(start + _BLOCK_QUERIES, span.length)
    keys = slice(span.start, span.start + stop)
    queries = slice(span.start + start, span.start + stop)
    return AttentionBlock((span.row, keys), (span.row, queries), mask[start:stop, :stop])


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)
