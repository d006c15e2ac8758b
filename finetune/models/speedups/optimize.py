"""Speed-ups of a loaded decoder. Each computes the same function and can be switched off."""

import math
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from finetune.models.attention.check import TOLERANCE, StateCheck
from finetune.models.attention.interface import ATTENTION_NAME
from finetune.models.speedups.dropout import FastDropout
from finetune.models.speedups.last_token import (
    disable_last_token_shortcut,
    enable_last_token_shortcut,
)
from task_formats import UsageError


@dataclass(frozen=True)
class Speedups:
    """Which speed-ups `optimize_decoder` applies."""

    activations: bool = True
    """GPT-2's GELU as one kernel instead of eight operations."""
    dropout: bool = True
    """Dropout whose random numbers are cheap on a CPU."""
    last_token: bool = True
    """The last block runs for the tokens that the head reads only."""


ALL = Speedups()


def optimize_decoder(decoder: PreTrainedModel, speedups: Speedups = ALL) -> PreTrainedModel:
    """Gives a decoder the speed-ups, and packed attention where it computes the same states.

    Otherwise the decoder keeps its own attention, which reads one view per row. Short texts decide:
    they are read packed, and alone with transformers' own code. The decoder is changed in place and
    returned; its weights and their names stay.

    Raises:
        UsageError: The decoder is not causal, or even padded rows change its states.
    """
    check = StateCheck(decoder)
    replace_modules(decoder, speedups)
    if enable_packed_attention(decoder, check, last_token=speedups.last_token) is None:
        return decoder
    difference = check.difference("separate")
    if not difference <= TOLERANCE:
        raise UsageError(
            f"this base ({decoder.config.model_type}) computes other states in a batch than of "
            f"each text alone: they differ by {difference:.0%}",
            where="base.path",
            cure="Use another base.",
        )
    return decoder


def enable_packed_attention(
    decoder: PreTrainedModel, check: StateCheck, *, last_token: bool = True
) -> str | None:
    """Replaces a decoder's attention if packed rows and the last-token shortcut pass the check.

    Returns:
        Why the decoder keeps its own attention; None where it was replaced.
    """
    if not getattr(decoder, "_supports_attention_backend", False):
        return "it does not use transformers' attention interface"
    own_attention = decoder.config._attn_implementation
    decoder.set_attn_implementation(ATTENTION_NAME)
    if last_token:
        enable_last_token_shortcut(decoder)
    try:
        difference = max(
            check.difference("packed", last_tokens_only=only) for only in (False, True)
        )
        reason = "packed rows change its states"
    except Exception as error:  # Code that does not expect it raises exceptions of every kind.
        difference = math.inf
        reason = (
            error.what
            if isinstance(error, UsageError)
            else "its code does not work with another attention"
        )
    if difference <= TOLERANCE:
        return None
    disable_last_token_shortcut(decoder)
    decoder.set_attn_implementation(own_attention)
    return reason


def replace_modules(decoder: PreTrainedModel, speedups: Speedups = ALL) -> None:
    """Exchanges activations and dropouts for faster ones, in place; weights and names stay."""
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if speedups.dropout and type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, FastDropout(child.p))
            elif speedups.activations and type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
