"""The last block of a decoder, computed only for the tokens whose state is read.

The head reads one token of each view. In the last block all other tokens matter only by their keys
and values, so their queries, attention, projection and feed-forward layer need not be computed: a
quarter of the work of a decoder of four layers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.batching.collate import Span, copy_to_device, round_up
from finetune.models.blocks import find_blocks

_PER_COLUMN = {"position_ids", "position_embeddings"}
"""Arguments of a block that hold something for each column."""
_ORIGINAL = "class_without_shortcut"


class LastTokens:
    """The last tokens of all views of a batch of (R, T) tokens.

    The last block runs twice: for all columns until its attention has their keys and values, then
    for the last tokens only.
    """

    def __init__(self, spans: Sequence[Span], columns: int) -> None:
        self.in_spans = [
            [stop - 1 for stop in accumulate(span.ending_lengths, initial=span.prefix_length)][1:]
            for span in spans
        ]
        """For every span the columns of its last tokens, counted from its start."""
        self.flat_index = [
            span.row * columns + span.start + column
            for span, last in zip(spans, self.in_spans, strict=True)
            for column in last
        ]
        """Flat indices into (R, T)."""
        self.running = False
        """True while the last block runs."""
        self.keys_values: tuple[Tensor, Tensor] | None = None
        """(R, H, T, d) keys and values of the last block, once they are computed."""

    def collect(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores all keys and values and leaves the block by KeysCollected; then returns them."""
        if self.keys_values is None:
            self.keys_values = key, value
            raise KeysCollected
        return self.keys_values


class KeysCollected(Exception):
    """The attention of the last block has computed its keys and values."""


def enable_last_token_shortcut(decoder: PreTrainedModel) -> None:
    """Lets the last block compute only the tokens that an AttentionLayout asks for.

    Weights and names stay. A decoder without a recognisable last block is not changed.
    """
    if blocks := find_blocks(decoder):
        block = blocks[-1]
        # The class keeps its name, by which FSDP finds the modules to shard.
        block.__class__ = _with_shortcut(type(block))


def disable_last_token_shortcut(decoder: PreTrainedModel) -> None:
    """Gives the last block its own class back."""
    if (blocks := find_blocks(decoder)) and hasattr(type(blocks[-1]), _ORIGINAL):
        blocks[-1].__class__ = getattr(type(blocks[-1]), _ORIGINAL)


def _with_shortcut(block_class: type[nn.Module]) -> type[nn.Module]:
    full_forward = block_class.forward

    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        layout = kwargs.get("attention_layout")
        # An unknown tensor might hold something for each column.
        unknown = [*args, *(kwargs[name] for name in kwargs if name not in _PER_COLUMN)]
        if (
            layout is None
            or layout.last_tokens is None
            or any(isinstance(value, Tensor) for value in unknown)
        ):
            return full_forward(self, hidden_states, *args, **kwargs)
        return _run(partial(full_forward, self), layout.last_tokens, hidden_states, args, kwargs)

    namespace = {
        "forward": forward,
        "__module__": block_class.__module__,
        _ORIGINAL: block_class,
    }
    return type(block_class.__name__, (block_class,), namespace)


def _run(
    block: Callable[..., Any],
    last_tokens: LastTokens,
    hidden: Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """(R, T, D) states of the last block, zero for all but the last tokens."""
    last_tokens.running, last_tokens.keys_values = True, None
    try:
        return block(hidden, *args, **kwargs)  # A block without attention runs to its end.
    except KeysCollected:
        count = len(last_tokens.flat_index)
        index = copy_to_device(torch.tensor(last_tokens.flat_index), hidden.device)
        if hidden.device.type == "cpu" and not torch.is_grad_enabled():
            # The last one again, for which attention gives zeros.
            index = torch.cat([index, index[-1:].expand(round_up(count) - count)])
        selected = {
            name: _select(kwargs[name], index, len(hidden)) for name in _PER_COLUMN & kwargs.keys()
        }
        outputs = block(hidden.flatten(0, 1)[index][None], *args, **{**kwargs, **selected})
        states = outputs[0] if isinstance(outputs, tuple) else outputs
        full = torch.zeros_like(hidden, dtype=states.dtype).flatten(0, 1)
        full = full.index_copy(0, index[:count], states[0, :count]).view(hidden.shape)
        return (full, *outputs[1:]) if isinstance(outputs, tuple) else full
    finally:
        last_tokens.running = False


def _select(value: Any, index: Tensor, rows: int) -> Any:
    """The (1, M, ...) entries at M flat indices of (R or 1, T, ...) tensors."""
    if isinstance(value, tuple):
        return tuple(_select(item, index, rows) for item in value)
    if not isinstance(value, Tensor):
        return value
    return value.expand(rows, *value.shape[1:]).flatten(0, 1)[index][None]
