"""New decoders: a style and a size to a transformers model with freshly drawn weights."""

from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from finetune.models.pretrained import set_dropout
from finetune.models.speedups.optimize import optimize_decoder
from finetune.pretraining.plan import ShapeConfig
from task_formats import UsageError


def build_decoder(
    shape: ShapeConfig, vocabulary: int, end: int, *, dropout: float, spread: float, seed: int
) -> PreTrainedModel:
    """A decoder in float32 with weights from N(0, spread); the same seed draws the same ones.

    `end` is the id of the end-of-text token. Raises UsageError for what a style cannot be.
    """
    config = _CONFIGURATIONS[shape.style](
        shape,
        vocab_size=vocabulary,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=None,
        initializer_range=spread,
        tie_word_embeddings=shape.tied,
    )
    set_dropout(config, dropout)
    torch.manual_seed(seed)
    return optimize_decoder(cast(PreTrainedModel, AutoModelForCausalLM.from_config(config).float()))


def _gpt1(shape: ShapeConfig, **common: Any) -> PreTrainedConfig:
    if shape.feed_forward not in (None, 4 * shape.width):
        raise UsageError(
            f"feed_forward {shape.feed_forward} is not 4 · width",
            where="shape.feed_forward",
            cure="gpt1 knows no other; take style: gpt2.",
        )
    return OpenAIGPTConfig(
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        **common,
    )


def _gpt2(shape: ShapeConfig, **common: Any) -> PreTrainedConfig:
    return GPT2Config(
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.feed_forward,
        **common,
    )


def _llama(shape: ShapeConfig, **common: Any) -> PreTrainedConfig:
    return LlamaConfig(
        max_position_embeddings=shape.positions,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward or -(-8 * shape.width // 3 // 64) * 64,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads or shape.heads,
        **common,
    )


_CONFIGURATIONS = {"gpt1": _gpt1, "gpt2": _gpt2, "llama": _llama}
