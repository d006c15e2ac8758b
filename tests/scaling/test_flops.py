"""Counts of parameters and FLOPs are those of the decoders that are made."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from finetune.pretraining.architectures import build_decoder
from finetune.pretraining.plan import Plan, ShapeConfig
from finetune.scaling.flops import count_flops, count_parameters

VOCABULARY, LENGTH, ROWS = 301, 24, 3
SHAPES = {
    "gpt1": {"style": "gpt1"},
    "gpt2": {"style": "gpt2"},
    "gpt2 wide": {"style": "gpt2", "feed_forward": 80},
    "llama": {"style": "llama"},
    "llama grouped": {"style": "llama", "key_value_heads": 2, "tied": False},
}


@pytest.fixture(params=SHAPES)
def shape(request):
    size = {"layers": 2, "width": 32, "heads": 4, "positions": LENGTH}
    return ShapeConfig.model_validate({**size, **SHAPES[request.param]})


@pytest.fixture
def decoder(shape):
    plan = Plan.model_validate({"corpus": {"train": "x"}, "shape": shape.model_dump()})
    return build_decoder(plan, VOCABULARY, 0)


def test_parameters_are_those_of_the_decoder(shape, decoder):
    found = count_parameters(shape, VOCABULARY)
    assert found.total == sum(p.numel() for p in decoder.parameters())
    parts = dict(decoder.named_parameters())
    embeddings = sum(
        value.numel()
        for name, value in parts.items()
        if any(word in name for word in ("wte", "wpe", "tokens_embed", "positions_embed"))
        or "embed_tokens" in name
    )
    assert found.embeddings == embeddings
    assert found.output == (parts["lm_head.weight"].numel() if not shape.tied else 0)


def test_flops_are_those_of_torch(shape, decoder):
    """Torch counts the attention to all tokens; a decoder attends to half of them, and itself."""
    config = type(decoder.config).from_dict(decoder.config.to_dict())
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with counter:
        tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
        plain(tokens, use_cache=False).logits.sum().backward()
    found = count_flops(shape, VOCABULARY, ROWS, LENGTH)
    attention = found.attention * 2 * LENGTH / (LENGTH + 1)
    output = found.output * LENGTH / (LENGTH - 1)
    # llama's rotary angles are a small product, too.
    assert found.layers + attention + output == pytest.approx(counter.get_total_flops(), rel=1e-4)
