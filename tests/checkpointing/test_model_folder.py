"""Saved models of every family: loading them, with gptft and with transformers alone."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from finetune.batching.collate import collate
from finetune.checkpointing.model_folder import load_model, save_model
from finetune.models.task_model import build_task_model
from tests.support import samples
from tests.support.families import FAMILIES, SENTENCES
from tests.support.samples import KINDS


def load_plain(folder) -> transformers.PreTrainedModel:
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_computes_the_same_bits(family, bases, tmp_path: Path) -> None:
    kind, base = KINDS["multiple_choice"], samples.load(bases(family))
    model = samples.task_model(kind, base, dropout=0.1)
    with torch.no_grad():  # Change every weight, as training does.
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=1e-3)
    many = samples.examples(kind, base)
    save_model(tmp_path, model, base, kind.task, 40)
    loaded, other = load_model(tmp_path, kind.task, 40)
    assert other.task_tokens.special_tokens == base.task_tokens.special_tokens
    assert other.task_tokens.pad_id == base.task_tokens.pad_id
    assert other.task_tokens.tokenize(SENTENCES) == base.task_tokens.tokenize(SENTENCES)
    assert not loaded.training
    model.eval()
    batch = collate(many, "separate", base.task_tokens.pad_id)
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, model(batch).logits)
        torch.testing.assert_close(loaded(batch, lm=True).lm_loss, model(batch, lm=True).lm_loss)
    assert not list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pkl"))
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "gptft" not in json.dumps(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_a_plain_transformers_folder(family, bases, tmp_path: Path) -> None:
    kind, base = KINDS["classification"], samples.load(bases(family))
    model = samples.task_model(kind, base).eval()
    save_model(tmp_path, model, base, kind.task, 40)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(["<|start|>", "<|delimiter|>", "<|extract|>"])
    assert tuple(ids) == base.task_tokens.special_tokens
    example = samples.examples(kind, base, count=1)[0]
    (view,) = samples.views(example)
    with torch.no_grad():
        states = load_plain(tmp_path).base_model(torch.tensor([view])).last_hidden_state[0]
        expected = states[-1] @ model.head.weight.t() + model.head.bias
        logits = model(collate([example], "separate", base.task_tokens.pad_id)).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_head_without_bias_is_saved_and_loaded(bases, tmp_path: Path) -> None:
    kind, base = KINDS["classification"], samples.load(bases("llama"))
    model = build_task_model(base, kind.task, head_bias=False).eval()
    save_model(tmp_path, model, base, kind.task, 40)
    loaded, _ = load_model(tmp_path, kind.task, 40, head_bias=False)
    assert loaded.head.bias is None
    batch = collate(samples.examples(kind, base), "separate", base.task_tokens.pad_id)
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, model(batch).logits)
