"""Attention over all texts of a packed row in one FlashAttention kernel, on NVIDIA GPUs.

The kernel is told where each text begins, so nothing is padded. It computes causal attention in
half precision. Queries at the end of a text may attend to more keys than there are queries, and so
an ending attends to the prefix that it shares with others: only keys and values are then copied.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.batching.collate import copy_to_device

_HALF = (torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256
_FIRST_CAPABILITY = (8, 0)  # Ampere.


class TextBounds(NamedTuple):
    """Where the queries and the keys of S texts begin in a packed row of T columns."""

    queries: Tensor
    """(S + 1,) int32: the first query of each text, and the number of all."""
    keys: Tensor
    """(S + 1,) int32: the same of the keys."""
    key_columns: Tensor | None
    """(U,) long: the columns of the keys, where a column is in several texts; None for all T."""
    most_queries: int
    """Of one text; at least 2, because with 1 the kernel arranges grouped heads as for decoding, of
    which the backward pass knows nothing."""
    most_keys: int
    is_causal: bool
    """The last query of a text attends to all its keys, the one before to all but the last, and so
    on. False where every query attends to all keys."""

    @classmethod
    def of(
        cls,
        queries: Sequence[int],
        keys: Sequence[Sequence[range]],
        device: torch.device,
        *,
        is_causal: bool,
    ) -> "TextBounds":
        """The bounds of texts by their numbers of queries and the columns of their keys."""
        lengths = [sum(map(len, columns)) for columns in keys]
        starts = [list(accumulate(counts, initial=0)) for counts in (queries, lengths)]
        bounds = copy_to_device(torch.tensor(starts, dtype=torch.int32), device)
        flat = [part for columns in keys for part in columns]
        columns = None
        if any(one.stop != other.start for one, other in pairwise(flat)):
            index = np.concatenate([np.arange(part.start, part.stop) for part in flat])
            columns = copy_to_device(torch.from_numpy(index), device)
        return cls(bounds[0], bounds[1], columns, max(2, *queries), max(lengths), is_causal)


def supports_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel can compute attention of these queries and values."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and torch.version.hip is None
        and _compute_dtype(query) in _HALF
        and width == value.shape[-1]
        and width % 8 == 0
        and width <= _WIDEST_HEAD
        and torch.cuda.get_device_capability(query.device) >= _FIRST_CAPABILITY
    )


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: TextBounds, dropout: float, scaling: float
) -> Tensor:
    """Computes attention within each text.

    Args:
        query: (1, H, S, d).
        key: (1, G, T, d), where G divides H.
        value: (1, G, T, d).
        bounds: Of the texts in the S queries and T keys.
        dropout: Probability of dropping an attention weight.
        scaling: Factor of the scores.

    Returns:
        (1, S, H, d) in half precision.
    """
    dtype = _compute_dtype(query)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    if bounds.key_columns is not None:
        k, v = (x.index_select(0, bounds.key_columns) for x in (k, v))
    return flash_attention(q, k, v, bounds, dropout, scaling)[None]


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: TextBounds, dropout: float, scaling: float
) -> Tensor:
    """The kernel: (S, H, d) queries, (U, G, d) keys and values to (S, H, d)."""
    # torch.nn.attention.varlen calls the same, but without dropout.
    outputs: tuple[Tensor, ...] = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds.queries, bounds.keys, bounds.most_queries, bounds.most_keys,
        dropout, bounds.is_causal, False, scale=scaling,
    )  # fmt: skip
    return outputs[0]


def _compute_dtype(query: Tensor) -> torch.dtype:
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
