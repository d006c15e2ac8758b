"""Bases that cannot be used: one clear error each, and none of their code is run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
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


def assert_same_weights(one: Path, other: Path) -> None:
    weights, expected = (load(folder).decoder.state_dict() for folder in (one, other))
    assert all(weights[name].equal(weight) for name, weight in expected.items())


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


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../outside.safetensors"])
def test_an_index_names_only_safetensors_files_of_its_folder(name, bases, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save(weights, folder / name)  # noqa: TID251
    else:
        save_file(weights, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"the file of weights '{name}'" in load_error(folder).what


@pytest.mark.parametrize("name", ["adapter_model.bin", "more/weights.safetensors"])
def test_a_configuration_names_only_a_safetensors_file_of_its_folder(
    name, bases, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    (folder / "more").mkdir()
    shutil.copy(folder / "model.safetensors", folder / name)
    config = json.loads((folder / "config.json").read_text())
    write(folder, **config, transformers_weights=name)
    assert f"the file of weights '{name}'" in load_error(folder).what


def test_a_base_in_shards_is_loaded(bases, tmp_path: Path) -> None:
    whole = transformers.AutoModelForCausalLM.from_pretrained(bases("gpt2"))
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    make_tokenizer("gpt2").save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(tmp_path, bases("gpt2"))


# Weights without a place in the model.


def save_weights(folder: Path, change, **config) -> Path:
    """Replaces the weights of a base by what `change` makes of them, and values of config.json."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})
    return write(folder, **{**json.loads((folder / "config.json").read_text()), **config})


def without_prefix(weights):
    return {name.removeprefix("transformer."): weight for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("family", "change", "config", "name"),
    [
        ("gpt2", dict, {"n_layer": 1}, "h.1.attn.c_attn.weight"),
        ("gpt2", without_prefix, {"n_layer": 1}, "h.1.attn.c_attn.weight"),
        ("llama", dict, {"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight"),
        (
            "llama",
            lambda weights: weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
            {},
            "model.layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_weights_that_the_configuration_leaves_out_are_an_error(
    family, change, config, name, bases, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bases(family), tmp_path / "base"))
    assert re.search(
        f"including .*{name}$", load_error(save_weights(folder, change, **config)).what
    )
    assert load(folder, from_scratch=True)


def add_what_others_save(weights):
    """Masks, positions, the tied output matrix, and heads of other tasks."""
    mask = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
    return {
        **weights,
        "h.0.attn.bias": mask,
        "h.1.attn.masked_bias": torch.tensor(-1e4),
        "lm_head.weight": weights["wte.weight"].clone(),
        "score.weight": torch.ones(2, 32),
        "v_head.summary.bias": torch.ones(1),
    }


def test_what_other_programs_save_beside_the_decoder_is_left_out(bases, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    save_weights(folder, lambda weights: add_what_others_save(without_prefix(weights)))
    assert_same_weights(folder, bases("gpt2"))
    old = Path(shutil.copytree(bases("llama"), tmp_path / "llama"))
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert load(save_weights(old, lambda weights: weights | rotary))


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


def test_a_base_without_layers(bases, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    write(folder, **{**config, "n_layer": 0})
    assert "it has 0 layers" in load_error(folder).what
