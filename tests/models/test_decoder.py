"""Families that scale or cap their logits."""

import pytest
import torch
import transformers
from torch import nn

from finetune.batching.collate import collate
from finetune.models.decoder import LogitTransform
from finetune.models.language_model import LanguageModel
from finetune.models.speedups.optimize import optimize_decoder
from finetune.pretraining.job import TextScorer
from task_formats import Encoded

SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 96,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
# Factors far from 1 and low caps, so that the logits of so small a decoder change.
SETTINGS = {
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 0.5},
    "falcon_h1": {
        "lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_d_state": 8, "head_dim": 8,
    },
    "recurrent_gemma": {
        "logits_soft_cap": 2.0, "lru_width": 32, "num_hidden_layers": 3,
        "attention_window_size": 64,
    },
    "nanochat": {"final_logit_softcapping": 2.0},
}  # fmt: skip


def draw(family: str) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(family, **{**SHAPE, **SETTINGS[family]})
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.15)
    return model.eval()


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("family", SETTINGS)
def test_loss_and_gradients_are_those_of_transformers(family: str) -> None:
    decoder = draw(family)
    rows = torch.randint(3, 320, (3, 17), generator=torch.Generator().manual_seed(2))
    expected = decoder(input_ids=rows, labels=rows).loss
    expected_gradients = gradients(decoder, expected)
    texts = [Encoded(f"x/{n}", row.tolist(), ()) for n, row in enumerate(rows)]
    batch = collate(texts, "separate")
    loss = LanguageModel(optimize_decoder(decoder))(batch, lm=True).lm_loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients(decoder, loss).items():
        other = expected_gradients[name]
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5, msg=name)
    expected = expected.detach()
    with torch.no_grad():
        nats = TextScorer(decoder)(batch).logits
    assert float(nats.sum()) == pytest.approx(16 * 3 * float(expected), rel=1e-5)
    # Without the transform of the family the loss would be another one.
    model = LanguageModel(decoder)
    assert model.backbone.logit_transform != LogitTransform()
    model.backbone.logit_transform = LogitTransform()
    assert abs(float(model(batch, lm=True).lm_loss.detach() - expected)) > 1e-2


def test_a_setting_that_transformers_ignores_is_ignored() -> None:
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=320)
    config.logit_scale = 0.5
    decoder = transformers.AutoModelForCausalLM.from_config(config)
    assert LogitTransform.of(decoder) == LogitTransform()
