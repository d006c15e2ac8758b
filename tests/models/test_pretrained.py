"""Every family from disk: training from scratch, dropout, and where bases are found."""

from pathlib import Path

import pytest
import torch

from finetune.batching.collate import collate
from finetune.models.language_model import LanguageModel
from finetune.models.pretrained import find_base
from task_formats import Encoded, UsageError
from tests.support.families import FAMILIES
from tests.support.samples import load


@pytest.mark.parametrize("family", FAMILIES)
def test_from_scratch_keeps_only_the_shape_and_the_tokens(family, bases) -> None:
    trained, drawn = load(bases(family)), load(bases(family), from_scratch=True)
    assert drawn.task_tokens.special_tokens == trained.task_tokens.special_tokens
    for name, weight in drawn.decoder.named_parameters():
        other = trained.decoder.get_parameter(name)
        assert (weight.shape, weight.dtype) == (other.shape, torch.float32)
        assert not torch.equal(weight, other)
        if weight.dim() == 2 and not name.endswith("c_proj.weight"):  # GPT-2 scales these down.
            assert weight.std().item() == pytest.approx(0.02, rel=0.25), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_dropout_reaches_the_decoder(family, probability: float, bases) -> None:
    base = load(bases(family), dropout=probability)
    model = LanguageModel(base.decoder)
    batch = collate([Encoded("x/0", list(range(20)), ())], "separate")
    with torch.no_grad():
        evaluated = model.eval().backbone.hidden_states(batch)
        torch.testing.assert_close(model.backbone.hidden_states(batch), evaluated)
        trained = model.train().backbone.hidden_states(batch)
    assert bool((trained - evaluated).abs().max() > 1e-3) == (probability > 0)


def test_one_dropout_replaces_all_or_the_bases_own_stay(bases) -> None:
    for dropout, expected in ((0.25, {0.25}), (None, {0.1})):
        decoder = load(bases("gpt2"), dropout=dropout).decoder
        assert {m.p for m in decoder.modules() if isinstance(m, torch.nn.Dropout)} == expected


def test_find_base_resolves_names_folders_and_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("saved", "run/model"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}", encoding="utf-8")
    assert find_base("saved") == "saved"
    assert Path(find_base("run")) == Path("run/model")
    assert find_base("openai-community/gpt2") == "openai-community/gpt2"
    assert (Path(find_base("tiny")) / "model.safetensors").is_file()
    (tmp_path / "saved" / "adapter_config.json").write_text("{}", encoding="utf-8")
    for path in ("saved", "saved/config.json", "./missing", ""):
        with pytest.raises(UsageError) as caught:
            find_base(path)
        assert caught.value.where == "base.path"
