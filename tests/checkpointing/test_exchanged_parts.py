"""What was exchanged or edited between two sittings of a run is told, and not trained with."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from finetune.checkpointing import checkpoint
from finetune.checkpointing.run_folder import RECIPE, read_identity
from finetune.recipe.schema import LoraConfig, Recipe
from task_formats import UsageError
from tests.support import jobs

pytestmark = pytest.mark.usefixtures("no_flush")
JOB = ("classification", {"checkpoint_updates": 1, "seed": 1})


def stop(recipe: Recipe, run: Path, update: int = 2, overwrite: bool = False) -> Path:
    """Trains until an update is done; the folder of the run, which has two states then."""
    assert jobs.stop_at(recipe, run, update, overwrite=overwrite).update == update
    return run


# -- states ------------------------------------------------------------------------------------


def test_states_of_another_run_are_not_used(job, undisturbed, tmp_path) -> None:
    """Whole and sealed they are, and yet they are not this run's: told as damage is."""
    run = stop(job, tmp_path / "run")
    other = stop(jobs.change(job, "train", seed=2), tmp_path / "other")
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    told, done = jobs.resume(run)
    assert done == [0]
    assert len(told) == 2
    assert all("belongs to another run; this state is not used" in text for text in told)
    jobs.assert_same(run, undisturbed)


def test_the_own_state_before_another_runs_is_used(job, undisturbed, tmp_path) -> None:
    run, other = stop(job, tmp_path / "run", 2), stop(job, tmp_path / "other", 3)
    shutil.copytree(other / "checkpoints/update-00000003", run / "checkpoints/update-00000003")
    told, done = jobs.resume(run)
    assert done == [2]
    assert [text.partition(": ")[2] for text in told] == [
        "belongs to another run; this state is not used"
    ]
    jobs.assert_same(run, undisturbed)


def test_a_run_can_be_moved_and_copied(job, undisturbed, tmp_path) -> None:
    moved = stop(job, tmp_path / "run").rename(tmp_path / "moved")
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    for run in (moved, copied):
        assert jobs.resume(run) == ([], [2])
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
    assert jobs.resume(run) == ([], [2])
    assert read_identity(run) == identity
    jobs.assert_same(run, undisturbed)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 5}', '{"id": ""}'])
def test_a_damaged_identity_is_told(content, job, undisturbed, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    (run / "result.json").unlink()
    (run / "run.json").write_text(content)
    with pytest.raises(UsageError, match=r"run\.json"):
        jobs.resume(run)


def test_a_state_that_names_no_run_is_used_and_told(job, undisturbed, tmp_path) -> None:
    """As those are that were saved before runs had identities."""
    run = stop(job, tmp_path / "run")
    state, _ = checkpoint.latest(run / "checkpoints")
    checkpoint.save(run / "checkpoints", 2, state.tensors, state.facts)
    assert "run" not in json.loads((state.path / "manifest.json").read_text())
    told, done = jobs.resume(run)
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
        jobs.resume(run)
    assert caught.value.where == str(run / RECIPE)
    assert "set that value back" in str(caught.value)
    edit(run, new, old)
    assert jobs.resume(run) == ([], [2])
    jobs.assert_same(run, undisturbed)


def test_a_recipe_can_be_edited_where_nothing_depends_on_it(job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, "checkpoint_updates: 1", "checkpoint_updates: 3")
    edit(run, "about: ", "about: mine")
    assert jobs.resume(run) == ([], [2])
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_command_outdoes_an_edited_recipe(job, undisturbed, tmp_path) -> None:
    """`gptft train ... --resume` with the old values goes on, and writes them down again."""
    run = stop(job, tmp_path / "run")
    edit(run, "learning_rate: 0.001", "learning_rate: 0.01")
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)
    assert "learning_rate: 0.001" in (run / RECIPE).read_text()


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
    told, done = jobs.resume(run)
    assert [text.split(" was ")[0] for text in told] == ["resumed with other base: weights"]
    assert done == [2]
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_changed_base_is_refused_where_its_weights_are_frozen(job, own_base, tmp_path) -> None:
    pytest.importorskip("peft")
    adapted = jobs.change(job, "base", path=str(own_base), lora=LoraConfig(rank=4))
    run = stop(adapted, tmp_path / "run")
    scale(own_base)
    with pytest.raises(UsageError, match="the base's weights have changed"):
        jobs.resume(run)


@pytest.mark.parametrize(
    ("name", "part"), [("config.json", "config"), ("tokenizer_config.json", "tokenizer")]
)
def test_changed_files_of_a_base_are_told(name, part, job, own_base, tmp_path) -> None:
    run = stop(jobs.change(job, "base", path=str(own_base)), tmp_path / "run")
    content = json.loads((own_base / name).read_text())
    (own_base / name).write_text(json.dumps({**content, "note": "edited"}))
    told, _ = jobs.resume(run)
    assert f"resumed with other base: {part}" in [text.split(" was ")[0] for text in told]
