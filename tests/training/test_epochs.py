"""The number of epochs where none is given."""

import pytest

from finetune.comparison import Design
from finetune.comparison import events as compare
from finetune.recipe.loading import load_recipe, override_recipe
from finetune.training import cross_validation
from finetune.training.events import CellFinished, Notice, Started
from finetune.training.finetuning import events
from tests.support import jobs


@pytest.fixture
def recipe(bases, tmp_path):
    """20 rows in updates of 10, without a number of epochs."""
    return jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epochs=None, batch_size=10)


def test_few_rows_are_trained_for_more_epochs_and_a_note_says_so(recipe, tmp_path):
    run = tmp_path / "run"
    seen = list(events(recipe, run))
    assert [event.updates for event in seen if isinstance(event, Started)] == [24]
    note = "12 epochs, because 20 training rows are few (--epochs changes it)"
    assert note in [event.text for event in seen if isinstance(event, Notice)]
    saved = load_recipe(run / "recipe.yaml")
    assert saved.train.epochs == 12
    # The recipe of the run trains the same, without a note.
    again = list(events(saved, tmp_path / "again"))
    assert not any(isinstance(event, Notice) and "few" in event.text for event in again)
    jobs.assert_same(run, tmp_path / "again")


def test_a_run_without_a_number_resumes(recipe, tmp_path):
    run = tmp_path / "run"
    jobs.stop_at(recipe, run, 20)
    jobs.train(recipe, run, resume=True)
    jobs.assert_same(jobs.train(recipe, tmp_path / "whole"), run)
    longer = override_recipe(recipe, {"train.epochs": 13})
    seen = list(events(longer, run, resume=True))
    assert [(e.done, e.updates) for e in seen if isinstance(e, Started)] == [(24, 26)]


def test_the_profile_of_the_paper_has_three_epochs():
    recipes = [load_recipe("rte", {"profile": name}) for name in ("modern", "paper")]
    assert [recipe.train.epochs for recipe in recipes] == [None, 3]


def test_finished_cells_and_folds_are_kept(recipe, tmp_path):
    design = Design((0,), (), (0.5,))
    for expected in (False, True):
        cells = [e for e in compare(recipe, tmp_path / "study", design) if type(e) is CellFinished]
        assert len(cells) == 5
        assert all(cell.reused == expected for cell in cells)
    recipe = override_recipe(recipe, {"data.evaluate": None, "train.batch_size": 4})
    folder = tmp_path / "folds"
    for _ in range(2):  # The second time the finished run is found.
        list(cross_validation.train_fold(recipe, folder, 1, 2))
    saved = load_recipe(cross_validation.fold_folder(folder, 1) / "recipe.yaml")
    assert saved.train.epochs == 12
