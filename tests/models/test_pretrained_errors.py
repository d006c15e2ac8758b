"""Bases that cannot be used: one clear error each, and none of their code is run."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file

from task_formats import UsageError
from tests.support.families import make_tokenizer
from tests.support.samples import load


def load_error(folder: Path | str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder)
    assert caught.value.cure
    assert caught.value.where.startswith("base")
    return caught.value


def write(folder: Path, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in load_error(tmp_path / "nowhere").what
    assert "network" in load_error("gpt2-that-does-not-exist").cure


def test_a_folder_that_is_no_base(tmp_path: Path) -> None:
    assert load_error(tmp_path)
    broken = write(tmp_path / "broken", model_type="gpt2", n_layer="two")
    assert "n_layer" in load_error(broken).what
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert load_error(tmp_path)


def test_damaged_and_incomplete_weights(bases, tmp_path: Path) -> None:
    shutil.copytree(bases("llama"), tmp_path / "half")
    weights = load_file(tmp_path / "half" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
    save_file(weights, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    error = load_error(tmp_path / "half")
    assert "2 weights are missing" in error.what
    assert load(tmp_path / "half", from_scratch=True)
    (tmp_path / "half" / "model.safetensors").write_bytes(b"\0" * 100)
    assert "cannot load" in load_error(tmp_path / "half").what


def test_pickled_weights_are_not_read(bases, tmp_path: Path) -> None:
    for file in bases("gpt2").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert "safetensors" in load_error(tmp_path).what


def test_code_that_comes_with_a_base_is_not_run(bases, tmp_path: Path) -> None:
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = write(tmp_path, model_type="evil", auto_map=auto)
    (folder / "evil.py").write_text("raise SystemExit('the code was run')", encoding="utf-8")
    assert "--trust-remote-code" in load_error(folder).cure


ENCODERS = {
    "bart": {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1},
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
}


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_no_decoder(family: str, tmp_path: Path) -> None:
    make_tokenizer("gpt2").save_pretrained(tmp_path)
    config = transformers.AutoConfig.for_model(family, vocab_size=300, **ENCODERS[family])
    config.save_pretrained(tmp_path)
    assert "no causal decoder" in load_error(tmp_path).what
