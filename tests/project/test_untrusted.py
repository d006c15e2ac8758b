"""Files from strangers: bounded memory, no code, no network, nothing written elsewhere."""

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

import finetune
from finetune.checkpointing import checkpoint
from finetune.cli import main
from finetune.data.readers.files import open_file
from finetune.models.pretrained import load_decoder
from finetune.pretraining.plan_loading import load_plan, parse_run_plan
from finetune.recipe.loading import dump_recipe
from finetune.recipe.schema import BaseConfig, PromptConfig
from finetune.storage import files
from task_formats import UsageError
from tests.support import jobs

# -- memory ----------------------------------------------------------------------------------------

READ = """
import resource, sys
from finetune.data.readers.files import open_file
from task_formats import UsageError
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
list(open_file(sys.argv[1]).read())
before = peak()
try:
    rows = sum(1 for _ in open_file(sys.argv[2]).read())
    what = f"{rows} rows"
except UsageError as error:
    what = error.what
print(peak() - before, what)
"""


def read_apart(good: Path, hostile: Path) -> tuple[int, str]:
    """Mebibytes that a process needs beyond those for a good file, and how that ends."""
    command = [sys.executable, "-c", READ, str(good), str(hostile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, _, what = done.stdout.strip().partition(" ")
    return int(size), what


GOOD = {"csv": "a,b\n1,2\n", "tsv": "a\tb\n1\t2\n", "jsonl": '{"a": 1}\n', "json": '[{"a": 1}]'}
MEMBER = 2**24


@pytest.mark.parametrize(
    ("kind", "start", "filling"),
    [
        ("csv", "a,b\n", "x"),
        ("json", '[{"a": [', "0,"),
        pytest.param("csv", 'a,b\n"', "x\n", marks=pytest.mark.slow),
        pytest.param("csv", "a,b\n", ",", marks=pytest.mark.slow),
        pytest.param("tsv", "a\tb\n", "\t", marks=pytest.mark.slow),
        pytest.param("jsonl", "", "[", marks=pytest.mark.slow),
        pytest.param("jsonl", '{"a": "', "x", marks=pytest.mark.slow),
        pytest.param("json", "", " ", marks=pytest.mark.slow),
    ],
)
def test_a_gigabyte_on_one_line_takes_little_memory(kind, start, filling, tmp_path) -> None:
    """Packed, a stranger sends it in a megabyte."""
    good = tmp_path / f"good.{kind}"
    good.write_text(GOOD[kind])
    hostile = tmp_path / f"hostile.{kind}.gz"
    member = gzip.compress((filling * (MEMBER // len(filling))).encode(), 1)
    with hostile.open("wb") as file:
        file.write(gzip.compress(start.encode()))
        for _ in range(2**30 // MEMBER):
            file.write(member)
    size, what = read_apart(good, hostile)
    assert size < 400
    assert "a row of more than" in what or "nested too deeply" in what or "empty" in what


def test_one_text_for_a_million_rows_takes_little_memory(tmp_path) -> None:
    """Half a kilobyte of Parquet that says a megabyte a thousand times."""
    good, hostile = tmp_path / "good.parquet", tmp_path / "hostile.parquet"
    parquet.write_table(pyarrow.table({"a": ["x"]}), good)
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1500, "int32"), ["x" * 2**20])
    parquet.write_table(
        pyarrow.table({"a": column}), hostile, compression="zstd", store_schema=False
    )
    assert hostile.stat().st_size < 2000
    size, what = read_apart(good, hostile)
    assert what == "1500 rows"
    assert size < 900


def test_a_text_longer_than_any_row_is_refused_in_parquet_too(tmp_path) -> None:
    path = tmp_path / "long.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", "y" * 2**24]}), path, compression="zstd")
    with pytest.raises(UsageError, match=r"long\.parquet, row 2: a row of more than"):
        list(open_file(path).read())


def test_rows_of_parquet_are_counted_across_groups(tmp_path) -> None:
    path, texts = tmp_path / "groups.parquet", [f"t{k}" for k in range(2500)]
    parquet.write_table(pyarrow.table({"a": texts}), path, row_group_size=700)
    found = list(open_file(path))
    assert [row["a"] for _, row in found] == texts
    assert [location.number for location, _ in found] == list(range(1, 2501))


# -- no network, no pickle -------------------------------------------------------------------------


def test_local_files_need_no_network_and_no_pickle(bases, tmp_path, monkeypatch) -> None:
    """Training, resuming, loading, predicting and evaluating, with the hub switched on."""
    import pickle  # noqa: TID251

    from huggingface_hub import constants

    def refuse(*arguments, **options):
        raise AssertionError(f"called with {arguments}")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (torch, "save")):
        monkeypatch.setattr(module, name, refuse)
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    run = jobs.train(recipe, tmp_path / "run")
    (run / "result.json").unlink()
    jobs.train(recipe, run, resume=True)
    predictor = finetune.load(run)
    assert predictor.evaluate() == jobs.result(run)["scores"]["evaluate"]
    assert len(predictor.predict(jobs.rows("entailment", 3, seed=4))) == 3


# -- folders of models and runs --------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    recipe = jobs.recipe("entailment", bases("gpt2"), folder / "data", checkpoint_updates=2)
    return jobs.train(recipe, folder / "run")


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run, to be tampered with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run: Path):
    return jobs.train(finetune.load_recipe(run / "recipe.yaml"), run, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda head: {"weight": head["weight"][:1], "bias": head["bias"][:1]},
        lambda head: {"weight": head["weight"].T.contiguous(), "bias": head["bias"]},
        lambda head: {"weight": head["weight"]},
        lambda head: {**head, "more": torch.zeros(1)},
        lambda head: {},
    ],
)
def test_a_head_of_another_shape_is_refused(change, run) -> None:
    path = run / "model" / "head.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UsageError, match=r"head\.safetensors: the head has the shapes"):
        finetune.load(run)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\xff" * 100])
def test_a_head_that_is_no_tensor_file_is_refused(content, run) -> None:
    (run / "model" / "head.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"head\.safetensors: not a safetensors file"):
        finetune.load(run)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"scores": 5, "update": 1, "updates": 1, "tokens": 1, "seconds": 1},
        {"scores": {"x": [1]}, "update": 1, "updates": 1, "tokens": 1, "seconds": 1},
        {"scores": {"x": {"y": "/etc"}}, "update": 1, "updates": 1, "tokens": 1, "seconds": 1},
        {"scores": {}, "update": "../..", "updates": 1, "tokens": 1, "seconds": 1},
    ],
)
def test_a_result_that_no_run_writes_is_refused(content, run) -> None:
    (run / "result.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"result\.json is not what a run writes"):
        resume(run)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("bias", lambda t, m: t.update({"weight.head.bias": torch.zeros(1)}), "head.bias is (1,)"),
        ("moment", lambda t, m: t.update({"exp_avg.head.bias": torch.zeros(9)}), "exp_avg.head"),
        ("names", lambda t, m: t.pop("weight.head.bias"), "weight.head.bias"),
        ("more", lambda t, m: t.update({"weight.evil": torch.zeros(1)}), "other weights"),
        ("no metadata", lambda t, m: m.clear(), "provenance"),
        ("metadata", lambda t, m: m.update(provenance=[]), "does not fit the run"),
        ("progress", lambda t, m: m["progress"].update(update=-5), "counts backwards"),
        ("text", lambda t, m: m["progress"].update(budget="x"), "something else than numbers"),
        ("key", lambda t, m: m["progress"].update(evil=1), "evil"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(name, change, what, run) -> None:
    """The hashes in a manifest show that it is complete, not that it is right."""
    (run / "result.json").unlink()
    state, _ = checkpoint.load_latest_checkpoint(run / "checkpoints")
    tensors, metadata = dict(state.tensors), dict(state.metadata)
    change(tensors, metadata)
    checkpoint.save_checkpoint(run / "checkpoints", 99, tensors, metadata)
    with pytest.raises(UsageError, match="this checkpoint does not fit the run") as caught:
        resume(run)
    assert what in caught.value.what


def test_names_in_a_recipe_lead_to_no_writing_elsewhere(bases, tmp_path, monkeypatch) -> None:
    """Splits are named by the recipe; wherever a name ends up, it is no path."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    more = jobs.write_rows(tmp_path / "data" / "more.jsonl", jobs.rows("entailment", 4, seed=5))
    recipe = jobs.change(recipe, "data", extra={"../../evil": more, "/tmp/evil": more})
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    run = jobs.train(recipe, tmp_path / "out" / "run")
    written = set(tmp_path.rglob("*")) - before
    inside = (tmp_path / "out", tmp_path / "cache")
    assert all(any(path.is_relative_to(place) for place in inside) for path in written)
    assert "../../evil" in jobs.result(run)["scores"]
    assert not Path("/tmp/evil").exists()


def test_adapters_for_another_base_are_not_followed(bases, tmp_path) -> None:
    """Otherwise transformers would load the base that the stranger's file names."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    told = {"peft_type": "LORA", "base_model_name_or_path": str(bases("llama"))}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="holds adapters for another base"):
        load_decoder(BaseConfig(path=str(folder)))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_code_of_a_hub_is_not_fetched(key, bases, tmp_path) -> None:
    """Otherwise transformers would do so wherever the package kernels is installed."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: "evil/kernel"}))
    with pytest.raises(UsageError, match="asks for attention code of a hub: evil/kernel"):
        load_decoder(BaseConfig(path=str(folder)))


def test_a_file_alone_cannot_ask_for_code_of_a_base_to_be_run(run, tmp_path, monkeypatch) -> None:
    """Neither a recipe nor the recipe in a stranger's run; the person at the keyboard can."""
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    for read in (finetune.load, finetune.load_recipe, resume):
        with pytest.raises(UsageError, match="would run Python code that comes with the base"):
            read(run if read is not finetune.load_recipe else path)
    trusting = finetune.load_recipe(path, {"base.trust_remote_code": True})
    assert trusting.base.trust_remote_code
    monkeypatch.setenv("GPTFT_TRUST_REMOTE_CODE", "1")
    assert finetune.load(run).recipe.base.trust_remote_code


def test_a_plan_alone_cannot_ask_for_it_either(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("corpus: {train: books}\nbase: ./mine\ntrust_remote_code: true\n")
    for read in (load_plan, lambda path: parse_run_plan(path.read_text(), str(path))):
        with pytest.raises(UsageError, match=r"mine\.yaml: trust_remote_code: true would"):
            read(path)
    assert load_plan(path, {"trust_remote_code": True}).trust_remote_code
    assert parse_run_plan(path.read_text(), str(path), trust_remote_code=True).trust_remote_code


CODE = """
from transformers import GPT2Config, GPT2LMHeadModel

class Config(GPT2Config):
    model_type = "ours"

class Model(GPT2LMHeadModel):
    config_class = Config
"""


@pytest.fixture
def coded(bases, tmp_path) -> Path:
    """A base that is nothing without the code that comes with it."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "coded"))
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"}
    told = {**config, "model_type": "ours", "architectures": ["Model"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "ours.py").write_text(CODE)
    return folder


def test_every_command_that_loads_a_base_runs_its_code_when_told(
    coded, tmp_path, capsys, monkeypatch
) -> None:
    """And none without a word: the cure that is named is an option that is there."""
    monkeypatch.chdir(tmp_path)
    recipe = jobs.recipe("entailment", coded, tmp_path / "data", epochs=1, train=4, held_out=4)
    prompt = PromptConfig(text="{premise}", answers={"yes": " yes", "no": " no"})
    (tmp_path / "mine.yaml").write_text(dump_recipe(jobs.change(recipe, "task", prompt=prompt)))
    jobs.write_rows(tmp_path / "new.jsonl", jobs.rows("entailment", 2, seed=5))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("It rained all night. " * 40)
    train = "--set train.batch_size=2 --set train.warmup_updates=0 --updates 1"
    for words in (
        "train --task mine.yaml -o run",
        "resume run",
        "evaluate run --device cpu",
        "predict run new.jsonl -o out.jsonl --device cpu",
        "ask --task mine.yaml",
        "generate It --base coded --max-new-tokens 2 --device cpu",
        "compare --task mine.yaml --seeds 0 --only lambda-0* -o study --keep-models",
        "compare --task mine.yaml --seeds 0 --only lambda-0* -o study",
        "evaluate study/lambda-0-seed-0 --device cpu",
        f"pretrain tiny --from coded --corpus books {train} -o further",
        "resume further",
        "generate It --base further --max-new-tokens 2 --device cpu",
    ):
        assert main(words.split()) == 2, words
        assert "pass --trust-remote-code" in capsys.readouterr().err, words
        assert main([*words.split(), "--trust-remote-code"]) == 0, capsys.readouterr().err


def test_a_hostile_recipe_is_one_message(tmp_path, capsys) -> None:
    path = tmp_path / "evil.yaml"
    for text in (
        "task: !!python/object/apply:os.system ['touch evil']",
        "task: !!python/name:os.system",
        "a: &a [*a]",
        "a: &a x\nb: *a",
        "x: " + "[" * 200_000,
        "x: " + "{a: " * 50_000,
        "\0",
        "task: {read: os.system}",
    ):
        path.write_text(text)
        assert main(["show", str(path)]) == 2
        assert capsys.readouterr().err.count("error:") == 1
    assert os.listdir(tmp_path) == ["evil.yaml"]
    assert files.safe_join(tmp_path, "evil.yaml") == path
