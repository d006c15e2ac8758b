"""Speed-ups of a loaded decoder. Each computes the same function and can be switched off."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from finetune.models.attention.interface import ATTENTION_NAME, supports_packed_attention
from finetune.models.speedups.dropout import FastDropout
from finetune.models.speedups.last_token import enable_last_token_shortcut


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
    """Gives a decoder packed attention, where its family supports it, and the speed-ups.

    The decoder is changed in place and returned; its weights and their names stay.
    """
    replace_modules(decoder, speedups)
    if supports_packed_attention(decoder):
        decoder.set_attn_implementation(ATTENTION_NAME)
        if speedups.last_token:
            enable_last_token_shortcut(decoder)
    return decoder


def replace_modules(decoder: PreTrainedModel, speedups: Speedups = ALL) -> None:
    """Exchanges activations and dropouts for faster ones, in place; weights and names stay."""
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if speedups.dropout and type(child) is nn.Dropout and not child.inplace:
                setattr(module, name, FastDropout(child.p))
            elif speedups.activations and type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))
