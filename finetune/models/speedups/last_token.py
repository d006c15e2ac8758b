"""A decoder's last block, computed only where somebody reads its states.

A linear head reads one token of each view. Up to the last block every token matters to the ones
after it; there, only by its key and value. So queries, weights, projection and feed-forward layer
of all others are work for nothing: a quarter of a decoder of four layers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.batching.collate import Span

_BY_COLUMN = ("position_ids", "position_embeddings")
"""Arguments of a block that tell something of each column."""


class LastTokens:
    """The last tokens of all views, the only ones whose last state is read.

    The last block runs twice: over all columns until its attention has their keys and values,
    then over these tokens alone.
    """

    def __init__(self, spans: Sequence[Span], columns: int) -> None:
        self.parts = [(span, _last_tokens(span)) for span in spans]
        self.flat = [
            span.row * columns + span.start + place for span, own in self.parts for place in own
        ]
        """Flat indices into (R, T)."""
        self.listening = False
        """True while the last block runs."""
        self.memory: tuple[Tensor, Tensor] | None = None
        """(R, H, T, d) keys and values of the last block, once it has got so far."""

    def take(self, key: Tensor, value: Tensor) -> None:
        """Remembers keys and values, and leaves the block: raises KeysCollected."""
        self.memory = key, value
        raise KeysCollected


class KeysCollected(Exception):
    """The last block's attention has got its keys and values."""


def _last_tokens(span: Span) -> list[int]:
    """Of each ending, counted from the span's start."""
    ends, at = [], span.prefix
    for length in span.endings:
        at += length
        ends.append(at - 1)
    return ends


def enable_last_token_shortcut(decoder: PreTrainedModel) -> None:
    """Makes the decoder's last block compute only the tokens that an AttentionLayout names.

    Weights and names stay. A decoder without a recognisable last block is left alone.
    """
    if blocks := find_blocks(decoder):
        block = blocks[-1]
        # A class of the same name: those who choose modules by it (FSDP) find this one, too.
        block.__class__ = _narrowed(type(block))


def find_blocks(decoder: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder's blocks, first to last; None where it is not clear which these are."""
    count = decoder.config.get_text_config().num_hidden_layers
    stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return stacks[0] if len(stacks) == 1 and count else None


def _narrowed(kind: type[nn.Module]) -> type[nn.Module]:
    whole = kind.forward

    def forward(self: nn.Module, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        attention_layout = named.get("attention_layout")
        ends = attention_layout.ends if attention_layout is not None else None
        if ends is None or not _understood(hidden_states, given, named):
            return whole(self, hidden_states, *given, **named)
        return _run(lambda *a, **k: whole(self, *a, **k), ends, hidden_states, given, named)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _understood(hidden: Tensor, given: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """False where an argument might tell something of each column that we would not cut."""
    others = [*given, *(named[name] for name in named if name not in _BY_COLUMN)]
    return hidden.dim() == 3 and not any(isinstance(other, Tensor) for other in others)


def _run(
    whole: Callable[..., Any],
    ends: LastTokens,
    hidden: Tensor,
    given: Sequence[Any],
    named: dict[str, Any],
) -> Any:
    """(R, T, D) states of the last block, zero where nobody reads them."""
    rows, columns, width = hidden.shape
    ends.listening, ends.memory = True, None
    try:
        return whole(hidden, *given, **named)  # A block without attention gets to its end.
    except KeysCollected:
        chosen = torch.tensor(ends.flat, device=hidden.device)
        few = {
            name: _choose(value, chosen, rows, columns) if name in _BY_COLUMN else value
            for name, value in named.items()
        }
        found = whole(hidden.flatten(0, 1)[chosen][None], *given, **few)
        states = found[0] if isinstance(found, tuple) else found
        wide = states.new_zeros(rows * columns, width).index_copy(0, chosen, states[0])
        wide = wide.view(rows, columns, width)
        return (wide, *found[1:]) if isinstance(found, tuple) else wide
    finally:
        ends.listening = False


def _choose(value: Any, chosen: Tensor, rows: int, columns: int) -> Any:
    """Of (R or 1, T, ...) tensors, what belongs to the chosen columns: (1, M, ...)."""
    if isinstance(value, tuple):
        return tuple(_choose(part, chosen, rows, columns) for part in value)
    if not isinstance(value, Tensor):
        return value
    every = value.expand(rows, *value.shape[1:]).flatten(0, 1)
    return every[chosen][None]
