"""New decoders of the styles gpt1, gpt2 and llama, with random weights."""

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
from finetune.pretraining.plan import Plan, ShapeConfig


def build_decoder(plan: Plan, vocabulary_size: int, end_id: int) -> PreTrainedModel:
    """Builds a float32 decoder with normally distributed weights; equal seeds give equal ones.

    `end_id` is the id of the end-of-text token.
    """
    config = _make_config(
        plan.shape,
        vocab_size=vocabulary_size,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=None,
        initializer_range=plan.train.initial_spread,
        tie_word_embeddings=plan.shape.tied,
    )
    set_dropout(config, plan.train.dropout)
    torch.manual_seed(plan.train.seed)
    return optimize_decoder(cast(PreTrainedModel, AutoModelForCausalLM.from_config(config).float()))


def _make_config(shape: ShapeConfig, **common: Any) -> PreTrainedConfig:
    if shape.style == "llama":
        return LlamaConfig(
            max_position_embeddings=shape.positions,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward or -(-8 * shape.width // 3 // 64) * 64,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads or shape.heads,
            **common,
        )
    common |= {"n_positions": shape.positions, "n_embd": shape.width}
    common |= {"n_layer": shape.layers, "n_head": shape.heads}
    if shape.style == "gpt2":
        return GPT2Config(n_inner=shape.feed_forward, **common)
    return OpenAIGPTConfig(**common)
