"""What was exchanged or edited between two sittings of a run is told, and not trained with."""

import json
import os
import shutil
import signal
from pathlib import Path

import jobs
import pytest
from safetensors.torch import load_file, save_file

import finetune
from finetune import checkpoint
from finetune.loop import Step
from finetune.news import Interrupted, Notice, Started
from finetune.recipe import LoraPart, Recipe
from finetune.recipe_files import load_recipe
from finetune.run import RECIPE, read_identity
from finetune.training import events
from task_formats import UsageError

pytestmark = pytest.mark.usefixtures("no_flush")


@pytest.fixture(scope="module")
def job(bases, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    return jobs.recipe("classification", bases("gpt2"), folder, checkpoint_updates=1, seed=1)


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory) -> Path:
    return jobs.train(job, tmp_path_factory.mktemp("undisturbed") / "run")


def stop(recipe: Recipe, run: Path, update: int = 2, overwrite: bool = False) -> Path:
    """Trains until an update is done; the folder of the run, which has two states then."""

    def watch() -> None:
        for event in events(recipe, run, overwrite=overwrite):
            if isinstance(event, Step) and event.number == update:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        watch()
    return run


def resume(run: Path) -> tuple[list[str], list[int]]:
    """As `gptft resume RUN`: what it tells, and after how many updates it begins."""
    seen = list(events(load_recipe(run / RECIPE), run, resume=True))
    told = [event.text for event in seen if isinstance(event, Notice)]
    return told, [event.done for event in seen if isinstance(event, Started)]


# -- states ------------------------------------------------------------------------------------


def test_states_of_another_run_are_not_used(job, undisturbed, tmp_path) -> None:
    """Whole and sealed they are, and yet they are not this run's: told as damage is."""
    run = stop(job, tmp_path / "run")
    other = stop(jobs.change(job, "train", seed=2), tmp_path / "other")
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    told, done = resume(run)
    assert done == [0]
    assert len(told) == 2
    assert all("belongs to another run; this state is not used" in text for text in told)
    jobs.assert_same(run, undisturbed)


def test_the_own_state_before_another_runs_is_used(job, undisturbed, tmp_path) -> None:
    run, other = stop(job, tmp_path / "run", 2), stop(job, tmp_path / "other", 3)
    shutil.copytree(other / "checkpoints/update-00000003", run / "checkpoints/update-00000003")
    told, done = resume(run)
    assert done == [2]
    assert [text.partition(": ")[2] for text in told] == [
        "belongs to another run; this state is not used"
    ]
    jobs.assert_same(run, undisturbed)


def test_a_run_can_be_moved_and_copied(job, undisturbed, tmp_path) -> None:
    moved = stop(job, tmp_path / "run").rename(tmp_path / "moved")
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    for run in (moved, copied):
        assert resume(run) == ([], [2])
        jobs.assert_same(run, undisturbed)


def test_a_run_begun_anew_has_another_identity(job, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    first = read_identity(run)
    assert first is not None
    stop(job, run, overwrite=True)
    assert read_identity(run) not in (first, None)


def test_a_lost_identity_is_that_of_the_newest_state(job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    identity = read_identity(run)
    (run / "run.json").unlink()
    assert resume(run) == ([], [2])
    assert read_identity(run) == identity
    jobs.assert_same(run, undisturbed)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 5}', '{"id": ""}'])
def test_a_damaged_identity_is_told(content, job, undisturbed, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    (run / "result.json").unlink()
    (run / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json"):
        resume(run)


def test_a_state_that_names_no_run_is_used_and_told(job, undisturbed, tmp_path) -> None:
    """As those are that were saved before runs had identities."""
    run = stop(job, tmp_path / "run")
    state, _ = checkpoint.latest(run / "checkpoints")
    checkpoint.save(run / "checkpoints", 2, state.tensors, state.facts)
    assert "run" not in json.loads((state.path / "manifest.json").read_text())
    told, done = resume(run)
    assert done == [2]
    assert ["names no run" in text for text in told] == [True]
    jobs.assert_same(run, undisturbed)


# -- the recipe --------------------------------------------------------------------------------


def edit(run: Path, old: str, new: str) -> None:
    """As sed in the folder of a run."""
    text = (run / RECIPE).read_text()
    assert old in text
    (run / RECIPE).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("learning_rate: 0.001", "learning_rate: 0.01", r"train\.learning_rate: 0\.001, not 0\.01"),
        ("seed: 1\n", "seed: 2\n", r"train\.seed: 1, not 2"),
        ("epochs: 2", "epochs: 3", r"train\.epochs: 2\.0, not 3\.0"),
        ("0: bad", "0: worse", r"task\.labels: {0: 'bad'"),
    ],
)
def test_an_edited_recipe_is_told(old, new, named, job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, old, new)
    with pytest.raises(UsageError, match=f"another {named}") as caught:
        resume(run)
    assert caught.value.where == str(run / RECIPE)
    assert "set that value back" in str(caught.value)
    edit(run, new, old)
    assert resume(run) == ([], [2])
    jobs.assert_same(run, undisturbed)


def test_a_recipe_can_be_edited_where_nothing_depends_on_it(job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, "checkpoint_updates: 1", "checkpoint_updates: 3")
    edit(run, "about: ", "about: mine")
    assert resume(run) == ([], [2])
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_command_outdoes_an_edited_recipe(job, undisturbed, tmp_path) -> None:
    """`gptft train ... --resume` with the old values goes on, and writes them down again."""
    run = stop(job, tmp_path / "run")
    edit(run, "learning_rate: 0.001", "learning_rate: 0.01")
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)
    assert "learning_rate: 0.001" in (run / RECIPE).read_text()


# -- the best model ----------------------------------------------------------------------------

WEIGHTS, SEAL = "model/model.safetensors", "model/manifest.json"


def flip(path: Path) -> None:
    """The last byte of a tensor file is a number's."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 128
    path.write_bytes(content)


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
    return stop(job, tmp_path_factory.mktemp("stopped") / "run", 4)


@pytest.mark.parametrize(("damage", "what"), DAMAGES)
def test_a_damaged_model_is_not_read(damage, what, undisturbed, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    finetune.load(run)
    damage(run)
    with pytest.raises(UsageError) as caught:
        finetune.load(run)
    assert what in caught.value.headline
    assert f"delete {run / SEAL}" in caught.value.cure


@pytest.mark.parametrize("leave", [lambda run: shutil.rmtree(run / "model"), DAMAGES[0][0]])
def test_a_run_whose_best_model_is_lost_comes_to_its_end(leave, stopped, tmp_path) -> None:
    """The next evaluation's takes its place, and the scores are those of what is saved."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    leave(run)
    told, done = resume(run)
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
    told, done = resume(run)
    assert done == [3]
    assert ["of update 3, is saved again" in text for text in told] == [True]
    jobs.assert_same(run, undisturbed)


def test_a_lost_model_after_all_updates_is_that_of_the_last(stopped, tmp_path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    resume(run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    told, done = resume(run)
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


# -- the base ----------------------------------------------------------------------------------


@pytest.fixture
def own_base(bases, tmp_path) -> Path:
    return Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))


def scale(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    scaled = {name: 1.5 * part for name, part in weights.items()}
    save_file(scaled, base / "model.safetensors", {"format": "pt"})


def test_a_changed_base_is_told(job, own_base, undisturbed, tmp_path) -> None:
    """All weights are in the state, so the run can go on."""
    run = stop(jobs.change(job, "base", path=str(own_base)), tmp_path / "run")
    scale(own_base)
    told, done = resume(run)
    assert [text.split(" was ")[0] for text in told] == ["resumed with other base: weights"]
    assert done == [2]
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_changed_base_is_refused_where_its_weights_are_frozen(job, own_base, tmp_path) -> None:
    pytest.importorskip("peft")
    adapted = jobs.change(job, "base", path=str(own_base), lora=LoraPart(rank=4))
    run = stop(adapted, tmp_path / "run")
    scale(own_base)
    with pytest.raises(UsageError, match="the base's weights have changed"):
        resume(run)


@pytest.mark.parametrize(
    ("name", "part"), [("config.json", "config"), ("tokenizer_config.json", "tokenizer")]
)
def test_changed_files_of_a_base_are_told(name, part, job, own_base, tmp_path) -> None:
    run = stop(jobs.change(job, "base", path=str(own_base)), tmp_path / "run")
    content = json.loads((own_base / name).read_text())
    (own_base / name).write_text(json.dumps({**content, "note": "edited"}))
    told, _ = resume(run)
    assert f"resumed with other base: {part}" in [text.split(" was ")[0] for text in told]
