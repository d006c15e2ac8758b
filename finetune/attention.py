"""Who sees whom: the one place that knows a row may hold several views or several examples."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from finetune.batch import Batch, Span
from finetune.kernels import Block, attend_blocks
from finetune.last_block import Ends

NAME = "gptft"

_QUERIES = 128
"""Rows of a block: a long sequence's early queries need not meet its late keys."""

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention over one block: queries, keys, values, and a mask where it is not plain causal."""

Pieces = list[tuple[Span | None, int]]
"""A row cut into spans and gaps (padding), each with its number of columns."""


class Memory:
    """Keys and values of a text that was read once, for batches that continue it.

    The first batch read with it is remembered: one row, one span. Later ones see all of it, and
    the places of their tokens go on where it ended.
    """

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.full = False
        """True when the text has been read through all layers."""

    def pass_by(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """The (1, H, P, d) keys and values remembered; None while these are being remembered."""
        if self.full:
            return self._layers[layer]
        self._layers[layer] = (key, value)
        return None


class Sight:
    """The spans of one batch, and the masks that its attention layers ask for, each made once.

    A token sees an earlier column of its own example that is prefix or of its own ending, and
    with a sliding window only those fewer than `window` places back.
    """

    def __init__(self, batch: Batch, ends_only: bool = False) -> None:
        self.spans = batch.spans
        self.ends = Ends(batch.spans, batch.tokens.shape[1]) if ends_only else None
        """Where nothing but the views' last states is read."""
        self._place, self._ending = batch.place, batch.ending
        self._masks: dict[Any, Tensor] = {}
        self._blocks: dict[Any, list[Block]] = {}
        # One causal call serves all rows when each starts with the one view it holds: what stands
        # to the right of it is padding, and nobody looks right.
        self.rowwise = all(
            span.start == 0 and len(span.endings) <= 1 for span in self.spans
        ) and len({span.row for span in self.spans}) == len(self.spans)
        self.longest = max(span.longest for span in self.spans)
        self.pieces = [
            _pieces(self.spans, r, batch.tokens.shape[1]) for r in range(len(batch.tokens))
        ]

    def blocks(self, window: int | None, dtype: torch.dtype) -> list[Block]:
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

    def last_blocks(self, window: int | None, dtype: torch.dtype) -> list[Block]:
        """A block of each span whose queries are its views' last tokens, told off in one row."""
        assert self.ends is not None
        found, at = [], 0
        masks = self._all_masks(window, dtype)
        for (span, own), mask in zip(self.ends.parts, masks, strict=True):
            keys = slice(span.start, span.stop)
            queries = slice(at, at := at + len(own))
            seen = mask[own, : span.stop - span.start]
            found.append(Block((span.row, keys), (0, queries), seen))
        return found

    def _all_masks(self, window: int | None, dtype: torch.dtype) -> Iterator[Tensor]:
        """For every span a mask whose upper left corner is its own."""
        longest = max(span.stop - span.start for span in self.spans)
        triangle = _triangle(longest, dtype, self._place.device)
        for span in self.spans:
            yield triangle if self.is_causal(span, window) else self.mask(span, window, dtype)

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


def _cut(span: Span, mask: Tensor) -> list[Block]:
    """A span's blocks; of the (L, L) mask each takes its rows and no column after the last."""
    found = []
    for first in range(span.start, span.stop, _QUERIES):
        stop = min(first + _QUERIES, span.stop)
        part = mask[first - span.start : stop - span.start, : stop - span.start]
        keys, queries = slice(span.start, stop), slice(first, stop)
        found.append(Block((span.row, keys), (span.row, queries), part))
    return found


def _seen(place: Tensor, ending: Tensor, window: int | None) -> Tensor:
    """(L, L) boolean: may the token of a row see the token of a column?"""
    back = place[:, None] - place[None, :]
    same = (ending[None, :] == -1) | (ending[None, :] == ending[:, None])
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return near & same


def _triangle(length: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(L, L) additive mask of plain causal attention."""
    return _additive(torch.ones(length, length, dtype=torch.bool, device=device).tril_(), dtype)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, lowest)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sight: Sight,
    memory: Memory | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """(R, H, T, d) queries against (R, G, T, d) keys and values, as transformers calls it.

    Columns of no span give zeros; nothing reads them.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if sight.ends is not None and sight.ends.listening:
        return _attend_last(query, key, value, sight, dropout, scaling, sliding_window, softcap)
    past = memory.pass_by(cast(int, module.layer_idx), key, value) if memory else None
    if past is None and dropout > 0 and softcap is None and query.device.type == "cpu":
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        blocks = sight.blocks(sliding_window, wide)
        return attend_blocks(query, key, value, blocks, dropout, scaling), None
    core = _core(dropout, scaling, softcap)
    if (
        past is None
        and sight.rowwise
        and (sliding_window is None or sight.longest <= sliding_window)
    ):
        return core(query, key, value, None).transpose(1, 2).contiguous(), None
    rows = [
        _attend_row(core, sight, pieces, sliding_window, row, past)
        for pieces, *row in zip(
            sight.pieces, *(x.split(1) for x in (query, key, value)), strict=True
        )
    ]
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def _attend_last(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
    dropout: float,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, None]:
    """(1, M, H, d) of the (1, H, M, d) last tokens alone, once the keys of all have been seen."""
    ends = cast(Ends, sight.ends)
    if ends.memory is None:
        ends.take(key, value)
    keys, values = cast(tuple[Tensor, Tensor], ends.memory)
    eager = dropout > 0 and softcap is None and query.device.type == "cpu"
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    blocks = sight.last_blocks(window, wide if eager else query.dtype)
    if eager:
        return attend_blocks(query, keys, values, blocks, dropout, scaling), None
    core = _core(dropout, scaling, softcap)
    found = [
        core(query[:, :, own], keys[row, :, seen][None], values[row, :, seen][None], mask)
        for (row, seen), (_, own), mask in blocks
    ]
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _attend_row(
    core: Core,
    sight: Sight,
    pieces: Pieces,
    window: int | None,
    row: list[Tensor],
    past: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(1, H, T, d) of one row. One split and one concatenation: cheap to differentiate."""
    lengths = [length for _, length in pieces]
    outputs = []
    for (span, _), q, k, v in zip(pieces, *(x.split(lengths, dim=2) for x in row), strict=True):
        if span is None:
            outputs.append(torch.zeros_like(v))
            continue
        if past is not None:
            mask = sight.mask(span, window, q.dtype, past[0].shape[2])
            keys, values = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            outputs.append(core(q, keys, values, mask))
            continue
        causal = sight.is_causal(span, window)
        outputs.append(core(q, k, v, None if causal else sight.mask(span, window, q.dtype)))
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _core(dropout: float, scaling: float, softcap: float | None) -> Core:
    """Attention over one block; without a mask it is causal."""

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling
        )

    def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            mask = _triangle(q.shape[-2], q.dtype, q.device)
        scores = (q * scaling) @ k.transpose(-1, -2)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        return drop((scores + mask).softmax(-1, dtype=torch.float32).to(v.dtype), dropout) @ v

    # With dropout on the weights PyTorch's kernel falls back to slow arithmetic on a CPU.
    return plain if dropout > 0 or softcap is not None else fused


AttentionInterface.register(NAME, attend)
