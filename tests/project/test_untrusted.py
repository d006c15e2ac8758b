"""Untrusted files: bounded memory, no code, no network, nothing written elsewhere (SECURITY.md)."""

import gzip
import json
import os
import re
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
from finetune.pretraining.plan import load_plan, parse_run_plan
from finetune.recipe.loading import dump_recipe
from finetune.recipe.schema import BaseConfig, PromptConfig
from task_formats import UsageError
from tests.conftest import ROOT
from tests.support import jobs


def test_every_test_named_in_the_security_page_exists():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


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
    result = f"{rows} rows"
except UsageError as error:
    result = error.what
print(peak() - before, result)
"""
VALID = {"csv": "a,b\n1,2\n", "tsv": "a\tb\n1\t2\n", "jsonl": '{"a": 1}\n', "json": '[{"a": 1}]'}
MEMBER = 2**24


def read_in_a_process(valid: Path, hostile: Path) -> tuple[int, str]:
    """MiB needed beyond those for a valid file, and the number of rows or the message."""
    command = [sys.executable, "-c", READ, str(valid), str(hostile)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, _, result = done.stdout.strip().partition(" ")
    return int(size), result


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
def test_a_gigabyte_on_one_line_takes_little_memory(kind, start, filling, tmp_path):
    valid, hostile = tmp_path / f"valid.{kind}", tmp_path / f"hostile.{kind}.gz"
    valid.write_text(VALID[kind])
    member = gzip.compress((filling * (MEMBER // len(filling))).encode(), 1)
    with hostile.open("wb") as file:
        file.write(gzip.compress(start.encode()))
        for _ in range(2**30 // MEMBER):
            file.write(member)
    size, result = read_in_a_process(valid, hostile)
    assert size < 400
    assert "a row of more than" in result or "nested too deeply" in result or "empty" in result


def test_a_dictionary_of_one_long_text_takes_little_memory(tmp_path):
    """Less than 2 kB of Parquet with 1,500 times the same MiB."""
    valid, hostile = tmp_path / "valid.parquet", tmp_path / "hostile.parquet"
    parquet.write_table(pyarrow.table({"a": ["x"]}), valid)
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1500, "int32"), ["x" * 2**20])
    table = pyarrow.table({"a": column})
    parquet.write_table(table, hostile, compression="zstd", store_schema=False)
    assert hostile.stat().st_size < 2000
    size, result = read_in_a_process(valid, hostile)
    assert result == "1500 rows"
    assert size < 900


def test_a_text_in_parquet_is_limited_to_the_size_of_a_row(tmp_path):
    path = tmp_path / "long.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", "y" * 2**24]}), path, compression="zstd")
    with pytest.raises(UsageError, match=r"long\.parquet, row 2: a row of more than"):
        list(open_file(path).read())


def test_rows_of_parquet_are_counted_across_row_groups(tmp_path):
    path, texts = tmp_path / "groups.parquet", [f"t{k}" for k in range(2500)]
    parquet.write_table(pyarrow.table({"a": texts}), path, row_group_size=700)
    rows = [(location.number, row["a"]) for location, row in open_file(path)]
    assert rows == list(enumerate(texts, start=1))


# -- network and pickle ----------------------------------------------------------------------------


def test_local_files_need_no_network_and_no_pickle(bases, tmp_path, monkeypatch):
    """Training, resuming, loading, predicting and evaluating, with the Hub online."""
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


# -- run directories -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    recipe = jobs.recipe("entailment", bases("gpt2"), folder / "data", checkpoint_updates=2)
    return jobs.train(recipe, folder / "run")


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of a finished run, to be modified."""
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
def test_a_head_of_another_shape_is_refused(change, run):
    path = run / "model" / "head.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UsageError, match=r"head\.safetensors: the head has the shapes"):
        finetune.load(run)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("bias", lambda t, m: t.update({"weight.head.bias": torch.zeros(1)}), "head.bias is (1,)"),
        ("moment", lambda t, m: t.update({"exp_avg.head.bias": torch.zeros(9)}), "exp_avg.head"),
        ("names", lambda t, m: t.pop("weight.head.bias"), "weight.head.bias"),
        ("more", lambda t, m: t.update({"weight.evil": torch.zeros(1)}), "other weights"),
        ("no metadata", lambda t, m: m.clear(), "config"),
        ("metadata", lambda t, m: m.update(provenance=[]), "does not fit the run"),
        ("progress", lambda t, m: m["progress"].update(update=-5), "negative count"),
        ("text", lambda t, m: m["progress"].update(budget="x"), "not numeric"),
        ("key", lambda t, m: m["progress"].update(evil=1), "evil"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(name, change, what, run):
    """The hashes of a manifest show that a checkpoint is complete, not that it is right."""
    (run / "result.json").unlink()
    state, _ = checkpoint.load_latest_checkpoint(run / "checkpoints")
    tensors, metadata = dict(state.tensors), dict(state.metadata)
    change(tensors, metadata)
    checkpoint.save_checkpoint(run / "checkpoints", 99, tensors, metadata)
    with pytest.raises(UsageError, match="this checkpoint does not fit the run") as caught:
        resume(run)
    assert what in caught.value.what


def test_names_of_splits_cannot_write_elsewhere(bases, tmp_path, monkeypatch):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    more = jobs.write_rows(tmp_path / "data" / "more.jsonl", jobs.rows("entailment", 4, seed=5))
    recipe = jobs.change(recipe, "data", extra={"../../evil": more, "/tmp/evil": more})
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    run = jobs.train(recipe, tmp_path / "out" / "run")
    written = set(tmp_path.rglob("*")) - before
    allowed = (tmp_path / "out", tmp_path / "cache")
    assert all(any(path.is_relative_to(folder) for folder in allowed) for path in written)
    assert "../../evil" in jobs.result(run)["scores"]
    assert not Path("/tmp/evil").exists()


# -- bases -----------------------------------------------------------------------------------------


def test_adapters_for_another_base_are_not_followed(bases, tmp_path):
    """Transformers would load the base that the adapter names."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(bases("llama"))}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UsageError, match="adapter"):
        load_decoder(BaseConfig(path=str(folder)))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_code_of_the_hub_is_not_fetched(key, bases, tmp_path):
    """Transformers would fetch it if the package kernels is installed."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: "evil/kernel"}))
    with pytest.raises(UsageError, match="evil/kernel"):
        load_decoder(BaseConfig(path=str(folder)))


def test_a_recipe_or_run_cannot_allow_code_by_itself(run, monkeypatch):
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    for read in (finetune.load, finetune.load_recipe, resume):
        with pytest.raises(UsageError, match="Python code that comes with the base"):
            read(run if read is not finetune.load_recipe else path)
    assert finetune.load_recipe(path, {"base.trust_remote_code": True}).base.trust_remote_code
    monkeypatch.setenv("GPTFT_TRUST_REMOTE_CODE", "1")
    assert finetune.load(run).recipe.base.trust_remote_code


def test_a_plan_cannot_allow_code_by_itself(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("corpus: {train: books}\nbase: ./mine\ntrust_remote_code: true\n")
    for read in (load_plan, lambda path: parse_run_plan(path.read_text(), str(path))):
        with pytest.raises(UsageError, match=r"mine\.yaml: trust_remote_code"):
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
def base_with_code(bases, tmp_path) -> Path:
    """A base that cannot be loaded without its own code."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "coded"))
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"}
    config = {**config, "model_type": "ours", "architectures": ["Model"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "ours.py").write_text(CODE)
    return folder


def test_every_command_that_loads_a_base_needs_trust_remote_code(
    base_with_code, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = jobs.recipe(
        "entailment", base_with_code, tmp_path / "data", epochs=1, train=4, held_out=4
    )
    prompt = PromptConfig(text="{premise}", answers={"yes": " yes", "no": " no"})
    (tmp_path / "mine.yaml").write_text(dump_recipe(jobs.change(recipe, "task", prompt=prompt)))
    jobs.write_rows(tmp_path / "new.jsonl", jobs.rows("entailment", 2, seed=5))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("It rained all night. " * 40)
    train = "--set train.batch_size=2 --set train.warmup_updates=0 --updates 1"
    for command in (
        "train --task mine.yaml -o run",
        "resume run",
        "evaluate run --device cpu",
        "predict run new.jsonl -o out.jsonl --device cpu",
        "prompt --task mine.yaml",
        "generate It --base coded --max-new-tokens 2 --device cpu",
        "compare --task mine.yaml --seeds 0 --only lambda-0* -o study --keep-models",
        "compare --task mine.yaml --seeds 0 --only lambda-0* -o study",
        "evaluate study/lambda-0-seed-0 --device cpu",
        f"pretrain tiny --from coded --corpus books {train} -o further",
        "resume further",
        "generate It --base further --max-new-tokens 2 --device cpu",
    ):
        assert main(command.split()) == 2, command
        assert "--trust-remote-code" in capsys.readouterr().err, command
        assert main([*command.split(), "--trust-remote-code"]) == 0, capsys.readouterr().err


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "task: !!python/object/apply:os.system ['touch evil']",
        "task: !!python/name:os.system",
        "a: &a [*a]",
        "a: &a x\nb: *a",
        "x: " + "[" * 200_000,
        "x: " + "{a: " * 50_000,
        "\0",
        "task: {read: os.system}",
    ],
    ids=range(8),
)
def test_a_hostile_recipe_gives_one_message(text, tmp_path, capsys):
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    assert main(["show", str(path)]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert os.listdir(tmp_path) == ["evil.yaml"]
