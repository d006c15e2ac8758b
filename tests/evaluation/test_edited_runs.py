"""Finished runs whose files were edited: what would change the meaning of outputs is refused."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import finetune
from finetune.checkpointing.run_folder import RECIPE
from finetune.cli import main
from task_formats import UsageError
from tests.support import jobs

JOB = ("entailment", {"epochs": 1})


@pytest.fixture
def run(undisturbed, tmp_path) -> Path:
    """A copy of a finished run, to be edited."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def edit(run: Path, old: str, new: str) -> None:
    """Replaces text in the recipe of a run."""
    text = (run / RECIPE).read_text()
    assert old in text, text
    (run / RECIPE).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[no, yes]", "[yes, no]", r"task\.labels {'no': 'no', 'yes': 'yes'}, not {'yes'"),
        ("[no, yes]", "[no, yes, maybe]", r"task\.labels"),
        ("format: entailment", "format: {views: [['{hypothesis}', '{premise}']]}", r"task\.format"),
        ("max_tokens: 48", "max_tokens: 24", r"train\.max_tokens 48, not 24"),
    ],
)
def test_a_recipe_that_changes_the_meaning_of_outputs_is_refused(
    old, new, named, run, capsys
) -> None:
    edit(run, old, new)
    with pytest.raises(UsageError, match=rf"head\.safetensors: the model was trained with {named}"):
        finetune.load(run)
    assert main(["evaluate", str(run), "--device", "cpu"]) == 2
    assert "Restore t" in capsys.readouterr().err


def test_raw_labels_may_be_added_but_not_exchanged(bases, tmp_path) -> None:
    recipe = jobs.recipe("similarity", bases("gpt2"), tmp_path / "data", epochs=1)
    run = jobs.train(recipe, tmp_path / "run")
    before = finetune.load(run).evaluate()
    edit(run, "{0: different, 1: same}", "{0: different, zero: different, 1: same}")
    assert finetune.load(run).evaluate() == before
    edit(run, "{0: different, zero: different, 1: same}", "{1: different, 0: same}")
    with pytest.raises(UsageError, match=r"task\.labels"):
        finetune.load(run)


def test_the_other_files_of_a_model_may_be_edited(run) -> None:
    """Weights that were merged or quantized, and a head that another program has written."""
    path = run / "model" / "model.safetensors"
    save_file({name: 0.5 * weight for name, weight in load_file(path).items()}, path)
    config = run / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": "mine"}))
    assert finetune.load(run)
    save_file(load_file(run / "model" / "head.safetensors"), run / "model" / "head.safetensors")
    edit(run, "max_tokens: 48", "max_tokens: 24")
    assert finetune.load(run), "there is nothing to compare with"
