"""Bases in 4 bits: what is quantized, trained, saved, and turned into a plain model."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import finetune
from finetune.batching.collate import collate
from finetune.checkpointing.model_folder import load_model, save_model
from finetune.checkpointing.run_folder import MODEL
from finetune.distributed import fsdp
from finetune.export import exporter, hub
from finetune.export.exporter import export_run
from finetune.models.pretrained import load_decoder
from finetune.models.quantization import count_parameters, dequantize_layers, is_quantized
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import BaseConfig, LoraConfig
from task_formats import UsageError
from tests.support import families, jobs, samples
from tests.support.samples import KINDS

QLORA = {"lora": LoraConfig(rank=2), "quantization": "nf4"}


WIDE = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"n_embd": 64},
}
"""Sizes that are multiples of 64, the weights that share a scale."""


@pytest.fixture(scope="module")
def wide_bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        for family, sizes in WIDE.items():
            kind, settings = families.CONFIGURATIONS[family]
            patch.setitem(families.CONFIGURATIONS, family, (kind, {**settings, **sizes}))
            families.make(family, folder / family)
    return lambda family: folder / family


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def quantized_layers(model, bitsandbytes) -> list[str]:
    kind = bitsandbytes.nn.Linear4bit
    return [name for name, layer in model.named_modules() if isinstance(layer, kind)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_train_and_the_saved_model_computes_the_same(
    family, wide_bases, bitsandbytes, tmp_path
):
    """Also the model that is dequantized, of nn.Linear and of GPT-2's Conv1D."""
    kind = KINDS["entailment"]
    base = samples.load(wide_bases(family), **QLORA)
    model = samples.task_model(kind, base)
    names = quantized_layers(model, bitsandbytes)
    assert len(names) == {"llama": 14, "gpt2": 8}[family], "all of the blocks"
    plain = samples.task_model(kind, samples.load(wide_bases(family), lora=QLORA["lora"]))
    assert count_parameters(model) == sum(weight.numel() for weight in plain.parameters())
    frozen = {n: w.clone() for n, w in model.named_parameters() if not w.requires_grad}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    batch = collate(samples.examples(kind, base), "packed")
    optimizer, before = torch.optim.SGD(trained, lr=0.5), [w.detach().clone() for w in trained]
    for _ in range(2):  # B starts at 0, so A moves in the second step only.
        samples.run(model, [batch])
        optimizer.step()
    assert not any(map(torch.equal, trained, before))
    assert all(torch.equal(w, frozen[n]) for n, w in model.named_parameters() if n in frozen)
    model.eval()
    with torch.no_grad():
        expected = model(batch, lm=True)
    save_model(tmp_path, model, base, kind.task, 40)
    again, _ = load_model(tmp_path, kind.task, 40)
    whole, whole_base = load_model(tmp_path, kind.task, 40, dequantize=True)
    assert len(quantized_layers(again, bitsandbytes)) == len(names)
    assert not quantized_layers(whole, bitsandbytes)
    save_model(tmp_path / "whole", whole, whole_base, kind.task, 40)
    plain, _ = load_model(tmp_path / "whole", kind.task, 40)
    for other, tolerance in ((again, 0), (whole, 1e-4), (plain, 1e-4)):
        with torch.no_grad():
            outputs = other(batch, lm=True)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=tolerance)
        torch.testing.assert_close(outputs.lm_loss, expected.lm_loss, rtol=tolerance, atol=0)


def test_weights_are_rounded(wide_bases, bitsandbytes):
    """NF4 changes normal numbers by 9 %, and everything but the linear layers not at all."""
    base = samples.load(wide_bases("llama")).decoder
    decoder = samples.load(wide_bases("llama"), **QLORA).decoder.get_base_model()
    dequantize_layers(decoder)
    found = {name.replace(".base_layer", ""): w for name, w in decoder.named_parameters()}
    for name, weight in base.named_parameters():
        difference = (found.get(name, weight) - weight).norm() / weight.norm()
        assert (0.07 < difference < 0.11) if "proj" in name else difference == 0, name


@pytest.fixture(scope="module")
def recipe(wide_bases, tmp_path_factory):
    part = {"dropout": 0.1, **QLORA}
    return jobs.recipe(
        "entailment", wide_bases("llama"), tmp_path_factory.mktemp("data"), base_part=part
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    return jobs.train(recipe, tmp_path_factory.mktemp("run") / "run")


def test_a_run_resumes_bit_equal_and_is_evaluated_in_4_bits(run, recipe, tmp_path):
    jobs.stop_at(recipe, tmp_path / "run", 3)
    resumed = jobs.train(recipe, tmp_path / "run", resume=True)
    jobs.assert_same(run, resumed)
    adapters = [load_file(f / MODEL / "adapter/adapter_model.safetensors") for f in (run, resumed)]
    assert jobs.distance(*adapters) == 0
    predictor = finetune.load(run)
    assert is_quantized(predictor.model.backbone.decoder)
    assert predictor.evaluate() == pytest.approx(jobs.result(run)["scores"]["evaluate"])


def test_a_pushed_run_has_its_adapters_and_no_local_path(run, recipe, tmp_path):
    for file in hub._run_files(run):
        content = file.path_or_fileobj
        target = tmp_path / file.path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] is None
    assert recipe.base.path not in str(config)
    rows = jobs.rows("entailment", 3)
    assert finetune.load(tmp_path, "cpu").predict(rows) == finetune.load(run, "cpu").predict(rows)


@pytest.mark.usefixtures("in_process")
def test_an_export_is_whole_and_the_base_of_another_run(run, recipe, tmp_path, monkeypatch):
    """The model in between is on the disk of the export, and deleted."""
    verify, sources = exporter.verify, []

    def note(source, *rest):
        sources.append(source)
        return verify(source, *rest)

    monkeypatch.setattr(exporter, "verify", note)
    verification = export_run(run, "standalone", tmp_path / "whole")
    assert sources[0].model_folder.is_relative_to(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert verification.rows == 9
    further = jobs.change(recipe, "train", lm_coefficient=0)
    further = further.model_copy(update={"base": BaseConfig(path=str(tmp_path / "whole"))})
    jobs.train(further, tmp_path / "further")
    with pytest.raises(UsageError, match=r"its weights are quantized[\s\S]*gptft export"):
        load_decoder(BaseConfig(path=str(run)))
    with pytest.raises(UsageError, match=r"for the base in 4 bits[\s\S]*standalone"):
        export_run(run, "adapter", tmp_path / "adapter")
    card = (run / MODEL / "README.md").read_text(encoding="utf-8")
    assert "bitsandbytes" in card
    assert "--base RUN" not in card
    config = json.loads((run / MODEL / "config.json").read_bytes())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


def test_weights_in_4_bits_are_not_sharded(wide_bases, bitsandbytes, monkeypatch):
    model = samples.task_model(KINDS["entailment"], samples.load(wide_bases("llama"), **QLORA))
    monkeypatch.setattr(fsdp, "fsdp_requested", lambda: True)

    class TwoProcesses:
        num_processes = 2

    with pytest.raises(UsageError, match="FSDP cannot shard 4-bit weights"):
        fsdp.prepare_model(model, TwoProcesses())


def test_settings_that_do_not_fit_together():
    with pytest.raises(UsageError, match=r"weights in 4 bits cannot be trained[\s\S]*base.lora"):
        load_recipe("rte", {"base.quantization": "nf4"})
    both = {"base.quantization": "nf4", "base.lora": "{}", "base.from_scratch": True}
    with pytest.raises(UsageError, match="no weights to quantize"):
        load_recipe("rte", both)


def test_a_width_that_is_no_multiple_of_a_block_is_refused(bases, bitsandbytes):
    """On a CPU such weights would be wrong."""
    with pytest.raises(UsageError, match="reads 32 numbers, no multiple of 64"):
        samples.load(bases("llama"), **QLORA)


def test_a_missing_package_is_named(wide_bases, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="bitsandbytes") as caught:
        samples.load(wide_bases("llama"), **QLORA)
    assert caught.value.cure == "pip install 'gptft[quantization]'"


@pytest.mark.gpu
def test_a_run_on_a_gpu(recipe, bitsandbytes, tmp_path):
    precise = jobs.change(recipe, "train", precision="bf16")
    run = jobs.train(precise, tmp_path / "run", device="cuda")
    assert all(torch.isfinite(torch.tensor(jobs.numbers(run))))
    scores = finetune.load(run, "cuda").evaluate()
    assert scores == pytest.approx(jobs.result(run)["scores"]["evaluate"], rel=1e-3)
