"""Speed-ups of a decoder compute the same function, and each can be switched off."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from finetune.models.speedups.dropout import FastDropout
from finetune.models.speedups.optimize import Speedups, optimize_decoder, replace_modules


@pytest.mark.parametrize("family", ["openai-gpt", "gpt2", "gpt_neo"])
def test_a_decoder_with_replaced_modules_is_the_same_function(family: str, bases):
    plain, fast = (AutoModelForCausalLM.from_pretrained(bases(family)).float() for _ in range(2))
    replace_modules(fast)
    assert any(type(module) is FastDropout for module in fast.modules())
    assert not any(type(m) in (nn.Dropout, NewGELUActivation) for m in fast.modules())
    assert list(fast.state_dict()) == list(plain.state_dict())
    tokens = torch.randint(0, 200, (2, 17))
    one, other = (model.eval()(tokens).logits for model in (fast, plain))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("off", ["activations", "dropout", "last_token"])
def test_each_speedup_can_be_switched_off(off: str, bases):
    decoder = AutoModelForCausalLM.from_pretrained(bases("gpt2"))
    block = decoder.base_model.h[-1]
    block_class = type(block)
    optimize_decoder(decoder, Speedups(**{off: False}))
    kinds = {type(module) for module in decoder.modules()}
    replaced = {
        "activations": NewGELUActivation not in kinds,
        "dropout": nn.Dropout not in kinds,
        "last_token": type(block) is not block_class,
    }
    assert replaced == {name: name != off for name in replaced}
