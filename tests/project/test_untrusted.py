"""Untrusted files: bounded memory, no code, no network, nothing written elsewhere (SECURITY.md)."""

import gzip
import json
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
from finetune.recipe.schema import BaseConfig, PromptConfig
from task_formats import UsageError
from tests.support import jobs

# -- memory ----------------------------------------------------------------------------------------

READ = """
import resource, sys
import pyarrow.parquet
from finetune.data.readers.files import open_file
from task_formats import UsageError
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    result = sum(1 for _ in open_file(sys.argv[1]).read())
except UsageError as error:
    result = error.what
print(peak() - before, result)
"""
MEMBER = 2**24


def read_in_a_process(path: Path) -> tuple[int, str]:
    """MiB needed to read a file, and the number of rows or the message."""
    command = [sys.executable, "-c", READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, _, result = done.stdout.strip().partition(" ")
    return int(size), result


@pytest.mark.parametrize(
    ("kind", "start", "filling"),
    [
        ("csv", "a,b\n", "x"),
        pytest.param("json", '[{"a": [', "0,", marks=pytest.mark.slow),
        pytest.param("csv", 'a,b\n"', "x\n", marks=pytest.mark.slow),
        pytest.param("csv", "a,b\n", ",", marks=pytest.mark.slow),
        pytest.param("jsonl", "", "[", marks=pytest.mark.slow),
        pytest.param("json", "", " ", marks=pytest.mark.slow),
    ],
)
def test_a_gigabyte_on_one_line_takes_little_memory(kind, start, filling, tmp_path):
    path = tmp_path / f"hostile.{kind}.gz"
    member = gzip.compress((filling * (MEMBER // len(filling))).encode(), 1)
    with path.open("wb") as file:
        file.write(gzip.compress(start.encode()))
        for _ in range(2**30 // MEMBER):
            file.write(member)
    size, result = read_in_a_process(path)
    assert size < 400
    assert "a row of more than" in result or "nested too deeply" in result or "empty" in result


@pytest.mark.slow
def test_a_dictionary_of_one_long_text_takes_little_memory(tmp_path):
    """Less than 2 kB of Parquet with 1,500 times the same MiB."""
    path = tmp_path / "hostile.parquet"
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1500, "int32"), ["x" * 2**20])
    table = pyarrow.table({"a": column})
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2000
    size, result = read_in_a_process(path)
    assert result == "1500"
    assert size < 900


def test_a_text_in_parquet_is_limited_to_the_size_of_a_row(tmp_path):
    path = tmp_path / "long.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", "y" * 2**24]}), path, compression="zstd")
    with pytest.raises(UsageError, match=r"long\.parquet, row 2: a row of more than"):
        list(open_file(path).read())


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


JOB = ("entailment", {"checkpoint_updates": 2})


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """A copy of a finished run, to be modified."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def resume(run: Path):
    return jobs.train(finetune.load_recipe(run / "recipe.yaml"), run, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda head: {"weight": head["weight"][:1], "bias": head["bias"][:1]},
        lambda head: {"weight": head["weight"]},
        lambda head: {**head, "more": torch.zeros(1)},
    ],
)
def test_a_head_of_another_shape_is_refused(change, run):
    path = run / "model" / "head.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(UsageError, match=r"head\.safetensors: the head has the shapes"):
        finetune.load(run)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t, m: t.update({"weight.head.bias": torch.zeros(1)}), "head.bias is (1,)"),
        (lambda t, m: t.update({"exp_avg.head.bias": torch.zeros(9)}), "exp_avg.head"),
        (lambda t, m: t.pop("weight.head.bias"), "weight.head.bias"),
        (lambda t, m: t.update({"weight.evil": torch.zeros(1)}), "other weights"),
        (lambda t, m: m.clear(), "its metadata has no 'config'"),
        (lambda t, m: m.update(provenance=[]), "does not fit the run"),
        (lambda t, m: m["progress"].update(evil=1), "evil"),
    ],
    ids=range(7),
)
def test_a_checkpoint_that_does_not_fit_is_refused(change, what, run):
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


def change_file(folder: Path, name: str, **values: object) -> Path:
    """Changes values of a JSON file in a folder, which is returned."""
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}))
    return folder


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("adapter_config.json", "base_model_name_or_path", "another/base"),
        ("config.json", "attn_implementation", "evil/kernel"),
        ("config.json", "_attn_implementation", "evil/kernel"),
    ],
)
def test_other_bases_and_code_that_a_base_names_are_not_fetched(file, key, value, bases, tmp_path):
    """Transformers would fetch them, the code if the package kernels is installed."""
    folder = Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))
    with pytest.raises(UsageError, match=r"holds adapters for another base|evil/kernel"):
        load_decoder(BaseConfig(path=str(change_file(folder, file, **{key: value}))))


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
    (folder / "ours.py").write_text(CODE)
    auto = {"AutoConfig": "ours.Config", "AutoModelForCausalLM": "ours.Model"}
    config = {"model_type": "ours", "architectures": ["Model"], "auto_map": auto}
    return change_file(folder, "config.json", **config)


def test_every_command_that_loads_a_base_needs_trust_remote_code(
    base_with_code, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = jobs.recipe(
        "entailment", base_with_code, tmp_path / "data", epochs=1, train=4, held_out=4
    )
    prompt = PromptConfig(text="{premise}", answers={"yes": " yes", "no": " no"})
    (tmp_path / "mine.yaml").write_text(jobs.change(recipe, "task", prompt=prompt).to_yaml())
    jobs.write_rows(tmp_path / "new.jsonl", jobs.rows("entailment", 2, seed=5))
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("It rained all night. " * 40)
    train = "--set train.batch_size=2 --set train.warmup_updates=0 --updates 1"
    for command in (
        "train --task mine.yaml -o run",
        "resume run",
        "estimate mine.yaml --seconds 0 --device cpu",
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
