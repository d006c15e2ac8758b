"""The blocks of a decoder: finding them, freezing some, and their learning rates."""

from typing import cast

from torch import nn
from transformers import PreTrainedModel

from task_formats import UsageError


def find_blocks(decoder: PreTrainedModel) -> nn.ModuleList | None:
    """The decoder's blocks, first to last; None where it is not clear which these are."""
    count = decoder.config.get_text_config().num_hidden_layers
    stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return stacks[0] if len(stacks) == 1 and count else None


def require_blocks(decoder: PreTrainedModel, setting: str) -> nn.ModuleList:
    """The decoder's blocks; UsageError where a setting needs them and they are not clear."""
    if (blocks := find_blocks(decoder)) is None:
        what = f"cannot identify the blocks of this base ({decoder.config.model_type})"
        raise UsageError(what, where=setting, cure=f"Train it without {setting}.")
    return blocks


def layer_rate_factors(decoder: PreTrainedModel, decay: float) -> dict[nn.Parameter, float]:
    """Returns the factor of the learning rate of every parameter below the last of L blocks.

    Block i = 0, ..., L − 1 has the factor decayᴸ⁻¹⁻ⁱ, embeddings have decayᴸ (ULMFiT, Howard and
    Ruder 2018, section 3.2).
    """
    if decay == 1:
        return {}
    blocks = require_blocks(decoder, "train.layer_decay")
    count = len(blocks)
    factors = dict.fromkeys(_embeddings(decoder), decay**count)
    for depth, block in enumerate(blocks):
        factors |= dict.fromkeys(block.parameters(), decay ** (count - 1 - depth))
    return factors


def freeze_layers(decoder: PreTrainedModel, count: int) -> None:
    """Excludes the embeddings and the lowest `count` blocks from training; 0 changes nothing.

    Raises:
        UsageError: The decoder has fewer blocks.
    """
    if count == 0:
        return
    blocks = require_blocks(decoder, "train.freeze_layers")
    if count > len(blocks):
        what = f"the base has {len(blocks)} blocks, so {count} cannot be frozen"
        raise UsageError(what, where="train.freeze_layers", cure="Freeze fewer.")
    frozen = [parameter for block in blocks[:count] for parameter in block.parameters()]
    for parameter in [*_embeddings(decoder), *frozen]:
        parameter.requires_grad_(False)


def checkpoint_activations(decoder: PreTrainedModel) -> None:
    """Keeps only the inputs of the blocks for the backward pass, which computes the rest again.

    Gradients are the same (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

    Raises:
        UsageError: transformers cannot do that for this decoder.
    """
    if not decoder.supports_gradient_checkpointing:
        what = f"this base ({decoder.config.model_type}) has no activation checkpointing"
        raise UsageError(what, where="train.activation_checkpointing", cure="Train it without.")
    # The method's older name is deprecated.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    name = next(name for name in names if hasattr(decoder, name))
    getattr(decoder, name)({"use_reentrant": False})


def _embeddings(decoder: PreTrainedModel) -> list[nn.Parameter]:
    modules = (module for module in decoder.modules() if isinstance(module, nn.Embedding))
    return [cast(nn.Parameter, module.weight) for module in modules]
