"""The attention function that decoders of transformers are given: a row may hold several texts."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from finetune.models.attention.kernels import block_attention
from finetune.models.attention.masks import AttentionLayout, causal_mask
from finetune.models.attention.padded_groups import AttentionKernel, padded_attention
from finetune.models.attention.varlen import supports_varlen, varlen_attention
from task_formats import UsageError

ATTENTION_NAME = "gptft"

_SHORT = 256
"""Without dropout our kernel is faster up to this many columns; beyond, PyTorch's is, because it
computes neither masks nor weights."""
_IGNORED_ARGUMENTS = {
    "cache_position",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "use_cache",
}
"""Arguments of transformers that do not change what packed attention computes."""


class PrefixCache:
    """Keys and values of a text that is read once; later batches attend to it and continue it."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.full = False
        """True once the text has been read through all layers."""

    def store_or_get(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """The stored (1, H, P, d) keys and values; None while these are being stored."""
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
    **others: Any,
) -> tuple[Tensor, None]:
    """Computes attention with the signature of transformers' attention interface.

    (R, H, T, d) queries and (R, G, T, d) keys and values, where G divides H, give (R, T, H, d),
    zeros in padding. `attention_layout` takes the place of `attention_mask`. A score z becomes
    softcap · tanh(z / softcap) where there is a cap.

    Raises:
        UsageError: transformers passes an argument that is not supported.
    """
    unknown = {name for name, given in others.items() if given is not None} - _IGNORED_ARGUMENTS
    if unknown:
        raise UsageError(
            f"packed attention does not support {', '.join(sorted(unknown))}",
            where="base.path",
            cure="Use another base.",
        )
    layout, window = attention_layout, sliding_window
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    last_tokens = layout.last_tokens
    if last_tokens is not None and not last_tokens.running:
        last_tokens = None
    if (
        softcap is None
        and prefix_cache is None
        and supports_varlen(query, value)
        and layout.is_packed_row(window)
    ):
        bounds = layout.text_bounds
        if last_tokens is not None:
            key, value = last_tokens.collect(key, value)
            bounds = layout.last_token_bounds
        return varlen_attention(query, key, value, bounds, dropout, scaling), None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    kernel = _attention_kernel(dropout, scaling, softcap)
    supports_blocks = softcap is None and query.device.type == "cpu"
    block_dtype = torch.promote_types(query.dtype, torch.float32)
    if last_tokens is not None:
        keys, values = last_tokens.collect(key, value)
        if supports_blocks:
            blocks = layout.last_token_blocks(window, block_dtype)
            return block_attention(query, keys, values, blocks, dropout, scaling), None
        outputs = [
            kernel(query[:, :, own], keys[row, :, seen][None], values[row, :, seen][None], mask)
            for (row, seen), (_, own), mask in layout.last_token_blocks(window, query.dtype)
        ]
        out = torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
        return pad(out, (0, 0, 0, 0, 0, query.shape[2] - out.shape[1])), None
    if prefix_cache:
        prefix = prefix_cache.store_or_get(cast(int, module.layer_idx), key, value)
        if prefix is not None:
            return _attend_spans(kernel, layout, (query, key, value), window, prefix), None
    causal_rows = layout.one_view_per_row and (window is None or layout.longest <= window)
    if supports_blocks and (dropout or (layout.longest <= _SHORT and not causal_rows)):
        blocks = layout.blocks(window, block_dtype)
        return block_attention(query, key, value, blocks, dropout, scaling), None
    if causal_rows:
        return kernel(query, key, value, None).transpose(1, 2).contiguous(), None
    if prefers_padded_groups(query.device):
        padded_groups = layout.padded_groups(window, query.dtype)
        return padded_attention(query, key, value, padded_groups, kernel), None
    return _attend_spans(kernel, layout, (query, key, value), window), None


AttentionInterface.register(ATTENTION_NAME, packed_attention)


def prefers_padded_groups(device: torch.device) -> bool:
    """True where few large kernels are faster than many small ones: everywhere but on a CPU."""
    return device.type != "cpu"


def _attend_spans(
    kernel: AttentionKernel,
    layout: AttentionLayout,
    inputs: tuple[Tensor, Tensor, Tensor],
    window: int | None,
    prefix: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(R, H, T, d) queries, keys and values to (R, T, H, d), with one call of the kernel per span.

    One split and one concatenation are cheap to differentiate.
    """
    rows, _, columns, _ = inputs[0].shape
    lengths = [length for _, length in layout.segments]
    flat = (x.transpose(0, 1).flatten(1, 2)[None] for x in inputs)  # (1, H, R·T, d)
    outputs = []
    for (span, _), *qkv in zip(
        layout.segments, *(x.split(lengths, dim=2) for x in flat), strict=True
    ):
        q, k, v = qkv
        if span is None:
            outputs.append(torch.zeros_like(v))
        elif prefix is not None:
            mask = layout.mask(span, window, q.dtype, prefix[0].shape[2])
            keys, values = torch.cat([prefix[0], k], dim=2), torch.cat([prefix[1], v], dim=2)
            outputs.append(kernel(q, keys, values, mask))
        elif layout.is_causal(span, window):
            outputs.append(kernel(q, k, v, None))
        else:
            outputs.append(kernel(q, k, v, layout.mask(span, window, q.dtype)))
    return torch.cat(outputs, dim=2)[0].transpose(0, 1).unflatten(0, (rows, columns)).contiguous()


def _attention_kernel(dropout: float, scaling: float, softcap: float | None) -> AttentionKernel:
    """Attention over one block of queries and keys; causal where there is no mask."""

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
