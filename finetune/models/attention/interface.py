"""The attention that transformers' decoders are given: a row may hold several texts."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from finetune.models.attention.kernels import block_attention
from finetune.models.attention.masks import AttentionLayout, Pieces, causal_mask
from finetune.models.attention.rectangles import Core, padded_attention
from finetune.models.speedups.last_token import LastTokens

ATTENTION_NAME = "gptft"

_SHORT = 256
"""Columns of the longest span up to which our own kernel serves without dropout, too: beyond,
PyTorch's makes neither masks nor weights."""


class PrefixCache:
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


@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention_layout: AttentionLayout,
    prefix_cache: PrefixCache | None = None,
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
    if attention_layout.ends is not None and attention_layout.ends.listening:
        return _attend_last(
            query, key, value, attention_layout, dropout, scaling, sliding_window, softcap
        )
    past = prefix_cache.pass_by(cast(int, module.layer_idx), key, value) if prefix_cache else None
    plain = attention_layout.rowwise and (
        sliding_window is None or attention_layout.longest <= sliding_window
    )
    in_blocks = _likes_blocks(query, softcap) and (
        dropout or (attention_layout.longest <= _SHORT and not plain)
    )
    if past is None and in_blocks:
        blocks = attention_layout.blocks(sliding_window, _widened(query.dtype))
        return block_attention(query, key, value, blocks, dropout, scaling), None
    core = _core(dropout, scaling, softcap)
    if past is None and plain:
        return core(query, key, value, None).transpose(1, 2).contiguous(), None
    if past is None and prefers_padded_groups(query.device):
        rectangles = attention_layout.rectangles(sliding_window, query.dtype)
        return padded_attention(query, key, value, rectangles, core), None
    rows = [
        _attend_row(core, attention_layout, pieces, sliding_window, row, past)
        for pieces, *row in zip(
            attention_layout.pieces, *(x.split(1) for x in (query, key, value)), strict=True
        )
    ]
    return torch.cat(rows).transpose(1, 2).contiguous(), None


def supports_packed_attention(decoder: PreTrainedModel) -> bool:
    """True when the decoder's layers can be given our attention, and so any layout."""
    parameters = inspect.signature(decoder.base_model.forward).parameters.values()
    passes_down = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    return bool(getattr(decoder, "_supports_attention_backend", False)) and passes_down


def prefers_padded_groups(device: torch.device) -> bool:
    """True where few large calls beat many small ones: everywhere but on a CPU."""
    return device.type != "cpu"


def _likes_blocks(query: Tensor, softcap: float | None) -> bool:
    """True where our own kernel can serve: on a CPU."""
    return softcap is None and query.device.type == "cpu"


def _widened(dtype: torch.dtype) -> torch.dtype:
    """What that kernel computes in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attend_last(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_layout: AttentionLayout,
    dropout: float,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, None]:
    """(1, M, H, d) of the (1, H, M, d) last tokens alone, once the keys of all have been seen."""
    ends = cast(LastTokens, attention_layout.ends)
    if ends.memory is None:
        ends.take(key, value)
    keys, values = cast(tuple[Tensor, Tensor], ends.memory)
    if _likes_blocks(query, softcap):
        blocks = attention_layout.last_blocks(window, _widened(query.dtype))
        return block_attention(query, keys, values, blocks, dropout, scaling), None
    blocks = attention_layout.last_blocks(window, query.dtype)
    core = _core(dropout, scaling, softcap)
    found = [
        core(query[:, :, own], keys[row, :, seen][None], values[row, :, seen][None], mask)
        for (row, seen), (_, own), mask in blocks
    ]
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _attend_row(
    core: Core,
    attention_layout: AttentionLayout,
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
            mask = attention_layout.mask(span, window, q.dtype, past[0].shape[2])
            keys, values = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            outputs.append(core(q, keys, values, mask))
            continue
        causal = attention_layout.is_causal(span, window)
        outputs.append(
            core(q, k, v, None if causal else attention_layout.mask(span, window, q.dtype))
        )
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _core(dropout: float, scaling: float, softcap: float | None) -> Core:
    """Attention over one block; without a mask it is causal."""

    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )

    def capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            mask = causal_mask(q.shape[-2], q.dtype, q.device)
        scores = (q * scaling) @ k.transpose(-1, -2)
        scores = cast(float, softcap) * torch.tanh(scores / cast(float, softcap))
        return drop((scores + mask).softmax(-1, dtype=torch.float32).to(v.dtype), dropout) @ v

    return fused if softcap is None else capped


AttentionInterface.register(ATTENTION_NAME, packed_attention)
