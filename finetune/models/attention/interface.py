"""The attention function that decoders of transformers are given: a row may hold several texts."""

import ast
import inspect
import textwrap
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from finetune.models.attention.kernels import block_attention
from finetune.models.attention.masks import AttentionLayout, Segments, causal_mask
from finetune.models.attention.padded_groups import AttentionKernel, padded_attention
from finetune.models.speedups.last_token import LastTokens
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
    """Keys and values of a text that is read once, for batches that continue it.

    The first batch that is read with it is stored: one row, one span. Tokens of later batches
    attend to all of it, and their positions continue where it ended.
    """

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
            f"packed attention does not support {', '.join(sorted(unknown))}, which this base uses",
            where="base.path",
            cure="Use another base.",
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_layout.last_tokens is not None and attention_layout.last_tokens.running:
        return _attend_last_tokens(
            query, key, value, attention_layout, dropout, scaling, sliding_window, softcap
        )
    prefix = None
    if prefix_cache:
        prefix = prefix_cache.store_or_get(cast(int, module.layer_idx), key, value)
    causal_rows = attention_layout.one_view_per_row and (
        sliding_window is None or attention_layout.longest <= sliding_window
    )
    use_blocks = _supports_blocks(query, softcap) and (
        dropout or (attention_layout.longest <= _SHORT and not causal_rows)
    )
    if prefix is None and use_blocks:
        blocks = attention_layout.blocks(sliding_window, _block_dtype(query.dtype))
        return block_attention(query, key, value, blocks, dropout, scaling), None
    kernel = _attention_kernel(dropout, scaling, softcap)
    if prefix is None and causal_rows:
        return kernel(query, key, value, None).transpose(1, 2).contiguous(), None
    if prefix is None and prefers_padded_groups(query.device):
        groups_with_masks = attention_layout.padded_groups(sliding_window, query.dtype)
        return padded_attention(query, key, value, groups_with_masks, kernel), None
    rows = [
        _attend_row(kernel, attention_layout, segments, sliding_window, row, prefix)
        for segments, *row in zip(
            attention_layout.segments, *(x.split(1) for x in (query, key, value)), strict=True
        )
    ]
    return torch.cat(rows).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, packed_attention)


def supports_packed_attention(decoder: PreTrainedModel) -> bool:
    """True when packed attention can replace a decoder's attention, so that it reads any layout.

    The decoder must pass keyword arguments down to transformers' attention interface, and none
    that `packed_attention` does not know.
    """
    parameters = inspect.signature(decoder.base_model.forward).parameters.values()
    passes_down = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
    uses_interface = bool(getattr(decoder, "_supports_attention_backend", False))
    known = _IGNORED_ARGUMENTS | inspect.signature(packed_attention).parameters.keys()
    return passes_down and uses_interface and _attention_arguments(decoder) <= known


def _attention_arguments(decoder: PreTrainedModel) -> set[str]:
    """Keywords with which a decoder's layers call the attention interface, from their source."""
    names: set[str] = set()
    for layer in {type(module) for module in decoder.modules()}:
        try:
            source = inspect.getsource(layer.forward)
        except (OSError, TypeError):  # Written in C, or not in a file.
            continue
        if "attention_interface(" in source:
            for node in ast.walk(ast.parse(textwrap.dedent(source))):
                if isinstance(node, ast.Call) and "attention_interface" in ast.dump(node.func):
                    names |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return names


def prefers_padded_groups(device: torch.device) -> bool:
    """True where few large kernels are faster than many small ones: everywhere but on a CPU."""
    return device.type != "cpu"


def _supports_blocks(query: Tensor, softcap: float | None) -> bool:
    return softcap is None and query.device.type == "cpu"


def _block_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that our own kernel computes in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attend_last_tokens(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_layout: AttentionLayout,
    dropout: float,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, None]:
    """(1, H, M, d) queries of the last tokens to (1, M, H, d), after all keys were collected."""
    last_tokens = cast(LastTokens, attention_layout.last_tokens)
    if last_tokens.keys_values is None:
        last_tokens.collect(key, value)
    keys, values = cast(tuple[Tensor, Tensor], last_tokens.keys_values)
    if _supports_blocks(query, softcap):
        blocks = attention_layout.last_token_blocks(window, _block_dtype(query.dtype))
        return block_attention(query, keys, values, blocks, dropout, scaling), None
    blocks = attention_layout.last_token_blocks(window, query.dtype)
    kernel = _attention_kernel(dropout, scaling, softcap)
    outputs = [
        kernel(query[:, :, own], keys[row, :, seen][None], values[row, :, seen][None], mask)
        for (row, seen), (_, own), mask in blocks
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend_row(
    kernel: AttentionKernel,
    attention_layout: AttentionLayout,
    segments: Segments,
    window: int | None,
    row: list[Tensor],
    prefix: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(1, H, T, d) of one row. One split and one concatenation are cheap to differentiate."""
    lengths = [length for _, length in segments]
    outputs = []
    for (span, _), q, k, v in zip(segments, *(x.split(lengths, dim=2) for x in row), strict=True):
        if span is None:
            outputs.append(torch.zeros_like(v))
        elif prefix is not None:
            mask = attention_layout.mask(span, window, q.dtype, prefix[0].shape[2])
            keys, values = torch.cat([prefix[0], k], dim=2), torch.cat([prefix[1], v], dim=2)
            outputs.append(kernel(q, keys, values, mask))
        elif attention_layout.is_causal(span, window):
            outputs.append(kernel(q, k, v, None))
        else:
            outputs.append(kernel(q, k, v, attention_layout.mask(span, window, q.dtype)))
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


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
