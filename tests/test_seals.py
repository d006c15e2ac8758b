"""Saved models check themselves when they are read: by their run, to predict, and as a base."""

import os
import shutil
from pathlib import Path

import jobs
import pytest

import finetune
from finetune.bases import load_decoder, load_plain
from finetune.loop import Step
from finetune.recipe import BasePart
from finetune.training import events
from task_formats import UsageError

pytestmark = pytest.mark.usefixtures("no_flush")
JOB = ("classification", {"checkpoint_updates": 1, "seed": 1})


WEIGHTS, SEAL = "model/model.safetensors", "model/manifest.json"


def flip(path: Path) -> None:
    """The last byte of a tensor file is a number's."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 128
    path.write_bytes(content)


def weights_of(base: Path) -> dict[str, list]:
    """As they are where the folder is read as a base."""
    decoder = load_decoder(BasePart(path=str(base))).decoder
    return {name: part.tolist() for name, part in decoder.named_parameters()}


DAMAGES = [
    (lambda run: flip(run / WEIGHTS), f"{WEIGHTS}: damaged: its content"),
    (lambda run: flip(run / "model/head.safetensors"), "head.safetensors: damaged: its content"),
    (lambda run: os.truncate(run / WEIGHTS, 900), f"{WEIGHTS}: damaged: 900 bytes"),
    (lambda run: (run / WEIGHTS).unlink(), f"{WEIGHTS}: No such file"),
    (lambda run: (run / "model/config.json").unlink(), "config.json: No such file"),
    (lambda run: (run / "model/tokenizer.json").write_text("{}"), "tokenizer.json: damaged"),
    (lambda run: (run / SEAL).write_text("{}"), f"{SEAL}: not of the format"),
]


@pytest.fixture(scope="module")
def stopped(job, tmp_path_factory) -> Path:
    """A run stopped after update 4 of 6, whose best model is that of update 3, of the epoch."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    jobs.stop_at(job, run, 4)
    return run


@pytest.mark.parametrize(("damage", "what"), DAMAGES)
def test_a_damaged_model_is_not_read(damage, what, undisturbed, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    finetune.load(run)
    damage(run)
    with pytest.raises(UsageError) as caught:
        finetune.load(run)
    assert what in caught.value.headline
    assert f"delete {run / SEAL}" in caught.value.cure


@pytest.mark.parametrize(
    "damage", [DAMAGES[0][0], DAMAGES[5][0], lambda run: os.truncate(run / SEAL, 99)]
)
@pytest.mark.parametrize("load", [load_decoder, load_plain])
def test_a_damaged_model_is_no_base(load, damage, undisturbed, tmp_path) -> None:
    """Neither to train on nor to ask; without its weights it is, and without a seal."""
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    part = BasePart(path=str(run))
    load(part)
    damage(run)
    with pytest.raises(UsageError, match=r"damaged|JSON") as caught:
        load(part)
    assert f"delete {run / SEAL}" in caught.value.cure
    (run / SEAL).write_text('{"name": "of something else"}')
    shutil.copy(undisturbed / "model/tokenizer.json", run / "model")
    load(part)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": NaN}', "// mine\n{}", "\ufeff{}", "x" * 2**21]
)
def test_a_manifest_of_something_else_is_nobodys_business(content, undisturbed, tmp_path) -> None:
    base = Path(shutil.copytree(undisturbed / "model", tmp_path / "base"))
    (base / "manifest.json").write_text(content, encoding="utf-8")
    assert weights_of(base) == weights_of(undisturbed)


def test_a_hubs_copy_of_a_sealed_model_is_a_base(undisturbed, tmp_path) -> None:
    """Its files are links to others."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in (undisturbed / "model").iterdir():
        (snapshot / path.name).symlink_to(path)
    assert weights_of(snapshot) == weights_of(undisturbed)


@pytest.mark.parametrize("leave", [lambda run: shutil.rmtree(run / "model"), DAMAGES[0][0]])
def test_a_run_whose_best_model_is_lost_comes_to_its_end(leave, stopped, tmp_path) -> None:
    """The next evaluation's takes its place, and the scores are those of what is saved."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    leave(run)
    told, done = jobs.resume(run)
    assert done == [4]
    assert ["the best model, of update 3, is lost" in text for text in told] == [True]
    found = jobs.result(run)
    assert found["update"] == 6
    assert finetune.load(run).evaluate() == found["scores"]["evaluate"]


def test_a_lost_model_is_saved_again_from_its_own_state(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    watched = events(job, run)
    for event in watched:
        if isinstance(event, Step) and event.number == 4:
            break
    watched.close()
    shutil.rmtree(run / "checkpoints/update-00000004", ignore_errors=True)
    shutil.rmtree(run / "model")
    told, done = jobs.resume(run)
    assert done == [3]
    assert ["of update 3, is saved again" in text for text in told] == [True]
    jobs.assert_same(run, undisturbed)


def test_a_lost_model_after_all_updates_is_that_of_the_last(stopped, tmp_path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    jobs.resume(run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    told, done = jobs.resume(run)
    assert (len(told), done) == (1, [6])
    found = jobs.result(run)
    assert found["update"] == 6
    assert finetune.load(run).evaluate() == found["scores"]["evaluate"]


def test_the_model_of_another_run_is_not_read(job, undisturbed, stopped, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    shutil.rmtree(run / "model")
    shutil.copytree(stopped / "model", run / "model")
    with pytest.raises(UsageError, match="belongs to another run"):
        finetune.load(run)
    (run / SEAL).unlink()
    finetune.load(run)  # on whoever's own word


def test_a_model_without_a_seal_is_read(undisturbed, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    flip(run / WEIGHTS)
    with pytest.raises(UsageError, match="damaged"):
        finetune.load(run)
    (run / SEAL).unlink()
    assert finetune.load(run).evaluate().keys() == jobs.result(run)["scores"]["evaluate"].keys()
