"""What was moved or edited while a run was interrupted: what is reported and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from finetune.checkpointing.run_folder import RECIPE
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import LoraConfig, Recipe
from finetune.training.events import Notice, Started
from finetune.training.finetuning import events
from task_formats import UsageError
from tests.support import jobs

pytestmark = pytest.mark.usefixtures("no_flush")
JOB = ("classification", {"checkpoint_updates": 1, "seed": 1})


def stop(recipe: Recipe, run: Path) -> Path:
    """Trains two updates; the folder of the run, which has two checkpoints then."""
    assert jobs.stop_at(recipe, run, 2).update == 2
    return run


def resume(run: Path) -> tuple[list[str], list[int]]:
    """As `gptft resume RUN`: its notices, and after how many updates it starts."""
    seen = list(events(load_recipe(run / RECIPE), run, resume=True))
    notices = [event.text for event in seen if isinstance(event, Notice)]
    return notices, [event.done for event in seen if isinstance(event, Started)]


def test_a_run_can_be_moved_and_copied(job, undisturbed, tmp_path) -> None:
    moved = stop(job, tmp_path / "run").rename(tmp_path / "moved")
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    for run in (moved, copied):
        assert resume(run) == ([], [2])
        jobs.assert_same(run, undisturbed)


def edit(run: Path, old: str, new: str) -> None:
    """Replaces text in the recipe of a run."""
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
        ("bias: true", "bias: false", r"head\.bias: True, not False"),
    ],
)
def test_an_edited_recipe_is_refused(old, new, named, job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, old, new)
    with pytest.raises(UsageError, match=f"another {named}") as caught:
        resume(run)
    assert caught.value.where == str(run / RECIPE)
    assert "restore that value" in str(caught.value)
    edit(run, new, old)
    assert resume(run) == ([], [2])
    jobs.assert_same(run, undisturbed)


def test_a_recipe_can_be_edited_where_nothing_depends_on_it(job, undisturbed, tmp_path) -> None:
    run = stop(job, tmp_path / "run")
    edit(run, "checkpoint_updates: 1", "checkpoint_updates: 3")
    edit(run, "about: ", "about: mine")
    assert resume(run) == ([], [2])
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_command_overrides_an_edited_recipe(job, undisturbed, tmp_path) -> None:
    """`gptft train ... --resume` with the old values continues, and writes them again."""
    run = stop(job, tmp_path / "run")
    edit(run, "learning_rate: 0.001", "learning_rate: 0.01")
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)
    assert "learning_rate: 0.001" in (run / RECIPE).read_text()


@pytest.fixture
def own_base(bases, tmp_path) -> Path:
    return Path(shutil.copytree(bases("gpt2"), tmp_path / "base"))


def scale(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    scaled = {name: 1.5 * part for name, part in weights.items()}
    save_file(scaled, base / "model.safetensors", {"format": "pt"})


def annotate(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "edited"}))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (scale, "weights"),
        (lambda base: annotate(base / "config.json"), "config"),
        (lambda base: annotate(base / "tokenizer_config.json"), "tokenizer"),
    ],
)
def test_a_changed_base_is_reported(change, part, job, own_base, undisturbed, tmp_path) -> None:
    """All weights are in the checkpoint, so the run can continue."""
    run = stop(jobs.change(job, "base", path=str(own_base)), tmp_path / "run")
    change(own_base)
    notices, done = resume(run)
    assert [text.split(" was ")[0] for text in notices] == [f"resumed with other base: {part}"]
    assert done == [2]
    assert jobs.distance(jobs.weights(run), jobs.weights(undisturbed)) == 0


def test_a_changed_base_is_refused_where_its_weights_are_frozen(job, own_base, tmp_path) -> None:
    pytest.importorskip("peft")
    adapted = jobs.change(job, "base", path=str(own_base), lora=LoraConfig(rank=4))
    run = stop(adapted, tmp_path / "run")
    scale(own_base)
    with pytest.raises(UsageError, match="the weights of the base have changed"):
        resume(run)
