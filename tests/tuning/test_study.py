"""Searches: trials, pruning, seeds, and going on after an interruption."""

import csv
import gc
import json
import math
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from finetune.models.task_model import TaskModel
from finetune.recipe.loading import load_recipe
from finetune.storage import json_files
from finetune.training.events import Diverged, Evaluated, Event, Finished, Result, Started
from finetune.tuning import trial as trial_module
from finetune.tuning.ranges import Choices, Interval, build_space
from finetune.tuning.study import TrialFinished, TrialStarted, events, read_trials, tune
from finetune.tuning.trial import Search
from task_formats import UsageError
from tests.support import jobs

RATE = Interval(1e-5, 1e-1, True, False)
SPACE = {"train.learning_rate": RATE, "train.schedule": Choices(("linear", "cosine"))}
SEARCH = Search(SPACE, (0, 1))


def score(recipe, epoch: float) -> float:
    """Highest at a rate of 1e-3 with the cosine schedule; rises over the epochs."""
    train = recipe.train
    distance = abs(math.log10(train.learning_rate) + 3) / 4
    bonus = 0.1 * (train.schedule == "cosine") + 0.01 * train.seed
    return (0.5 - 0.5 * distance + bonus) * epoch / train.epochs


@pytest.fixture
def training(monkeypatch) -> SimpleNamespace:
    """Replaces training by a formula, and notes each run; `diverges` says which ones fail."""
    noted = SimpleNamespace(runs=[], diverges=lambda recipe: False, stop_after=None)

    def train(recipe, folder, **options) -> Iterator[Event]:
        if noted.stop_after is not None and len(noted.runs) >= noted.stop_after:
            raise KeyboardInterrupt
        noted.runs.append((folder.parent.name, recipe.train.seed))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        yield Started(3, 0, 1, 1, 1, "cpu", "fp32", "packed", 1)
        if noted.diverges(recipe):
            raise Diverged("the loss is not finite")
        for epoch in (1, 2, 3):
            yield Evaluated(epoch, epoch, {"accuracy": score(recipe, epoch)}, True)
        made_with = {"data": {"evaluate": "the same"}}
        scores = {"evaluate": {"accuracy": score(recipe, 3)}}
        result = {"scores": scores, "made_with": made_with, "seconds": 2}
        (folder / "result.json").write_bytes(json_files.encode(result))
        noted.runs[-1] += ("finished",)
        yield Finished(Result(scores, 3, 3, 1, 2.0, folder))

    monkeypatch.setattr(trial_module, "train_events", train)
    monkeypatch.setattr(trial_module, "gc", SimpleNamespace(collect=lambda: None))  # It takes long.
    return noted


@pytest.fixture(scope="module")
def recipe():
    settings = {"train.learning_rate": 1e-4, "train.seed": 0, "train.precision": "fp32"}
    return load_recipe("demo", {"base.path": "tiny", **settings})


def table(folder) -> list[dict[str, str]]:
    """trials.csv without what a clock measured."""
    with open(folder / "trials.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_the_search_finds_better_values_and_averages_seeds(recipe, training, tmp_path):
    best, *others = tune(recipe, tmp_path, SEARCH, trials=12)
    assert len(others) == 11
    first = next(trial for trial in others if trial.number == 1)
    assert first.values == {"train.learning_rate": 1e-4, "train.schedule": "linear"}
    assert best.value > max(first.value, 0.55)
    values = recipe.train.model_copy(
        update={key.removeprefix("train."): value for key, value in best.values.items()}
    )
    means = [score(SimpleNamespace(train=values.model_copy(update={"seed": n})), 3) for n in (0, 1)]
    assert best.scores == {"accuracy": pytest.approx(sum(means) / 2)}
    finished = [trial for trial in (best, *others) if trial.state == "finished"]
    assert [trial.value for trial in finished] == sorted([t.value for t in finished], reverse=True)


def test_the_best_recipe_is_a_recipe(recipe, training, tmp_path):
    best, *_ = tune(recipe, tmp_path, SEARCH, trials=4)
    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith(f"# gptft tune: trial {best.number} of 4, accuracy {best.value:.4f}")
    loaded = load_recipe(tmp_path / "best.yaml")
    assert loaded.train.learning_rate == best.values["train.learning_rate"]
    assert loaded.train.schedule == best.values["train.schedule"]
    assert loaded.data == recipe.data
    assert loaded.train.seed == recipe.train.seed


def test_poor_trials_are_pruned_before_their_last_epoch_and_second_seed(recipe, training, tmp_path):
    trials = tune(recipe, tmp_path / "pruned", SEARCH, trials=10)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        runs = [run for run in training.runs if run[0] == f"{trial.number:04d}"]
        assert runs == [(f"{trial.number:04d}", 0)]
        assert "accuracy" in trial.scores
    full = tune(recipe, tmp_path / "whole", SEARCH._replace(prune=False), trials=7)
    assert {trial.state for trial in full} == {"finished"}


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(recipe, training, tmp_path):
    tune(recipe, tmp_path / "whole", SEARCH, trials=8)
    training.runs.clear()
    for stop in (3, 7):  # A kill during the trial: it stays in the database as running.
        training.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            tune(recipe, tmp_path / "parts", SEARCH, trials=8)
    training.stop_after = None
    tune(recipe, tmp_path / "parts", SEARCH, trials=8)
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    finished = [run for run in training.runs if "finished" in run]
    assert len(finished) == len(set(finished))  # No seed was trained to its end twice.


def test_more_trials_extend_a_search(recipe, training, tmp_path):
    tune(recipe, tmp_path / "long", SEARCH, trials=6)
    tune(recipe, tmp_path / "short", SEARCH, trials=4)
    assert len(read_trials(recipe, tmp_path / "short")) == 4
    training.runs.clear()
    seen = list(events(recipe, tmp_path / "short", SEARCH, trials=6))
    assert [event.number for event in seen if isinstance(event, TrialStarted)] == [5, 6]
    assert table(tmp_path / "short") == table(tmp_path / "long")


def test_a_trial_that_diverges_has_failed_and_the_search_goes_on(recipe, training, tmp_path):
    training.diverges = lambda recipe: recipe.train.learning_rate == 1e-4
    trials = tune(recipe, tmp_path, SEARCH, trials=3)
    assert [(t.number, t.state, t.reason) for t in trials if t.state == "failed"] == [
        (1, "failed", "the loss is not finite")
    ]
    assert table(tmp_path)[0]["reason"] == "the loss is not finite"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"space": {**SPACE, "train.learning_rate": RATE._replace(high=1)}},
            "another train.learning_rate: '1e-05..0.1:log', not '1e-05..1:log'",
        ),
        ({"space": {"train.learning_rate": RATE}}, "another train.schedule"),
        ({"seeds": (0,)}, r"another seeds: \[0, 1\], not \[0\]"),
    ],
)
def test_another_search_is_not_mixed_in(recipe, training, tmp_path, change, message):
    tune(recipe, tmp_path, SEARCH, trials=1)
    with pytest.raises(UsageError, match=message):
        tune(recipe, tmp_path, SEARCH._replace(**change), trials=2)
    other = jobs.change(recipe, "train", epochs=5.0)
    with pytest.raises(UsageError, match=r"another train.epochs: 2.0, not 5.0"):
        tune(other, tmp_path, SEARCH, trials=2)
    assert len(tune(other, tmp_path, SEARCH, trials=1, overwrite=True)) == 1


def test_folders_and_recipes_that_cannot_be_searched_are_refused(recipe, training, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="Directory is not empty"):
        tune(recipe, tmp_path, SEARCH)
    silent = jobs.change(recipe, "data", evaluate=None)
    with pytest.raises(UsageError, match=r"data.evaluate: a search needs evaluation data"):
        tune(silent, tmp_path / "new", SEARCH)
    with pytest.raises(UsageError, match="no search in this directory"):
        read_trials(recipe, tmp_path)
    (tmp_path / "search?#%").mkdir()
    assert len(tune(recipe, tmp_path / "search?#%", SEARCH, trials=1)) == 1


def test_a_missing_optuna_is_said(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"not installed\npip install 'gptft\[tune\]'"):
        tune(recipe, tmp_path, SEARCH)


def test_changed_data_end_the_search(recipe, training, tmp_path):
    tune(recipe, tmp_path, SEARCH, trials=1)
    result = tmp_path / "trials" / "0001" / "seed-0" / "result.json"
    assert json.loads(result.read_text())["made_with"]["data"] == {"evaluate": "the same"}
    original = trial_module.read_result
    with pytest.MonkeyPatch.context() as patch:
        other = {"made_with": {"data": {"evaluate": "others"}}}
        patch.setattr(trial_module, "read_result", lambda folder: {**original(folder), **other})
        with pytest.raises(UsageError, match="the data have changed"):
            tune(recipe, tmp_path, SEARCH, trials=2)


@pytest.mark.slow
def test_trials_train_and_leave_no_model_on_disk_or_in_memory(bases, tmp_path):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epochs=1, batch_size=10)
    space = build_space(recipe, ["learning_rate=1e-4..1e-2:log"])
    before = count_models()
    seen = list(events(recipe, tmp_path / "search", Search(space, (3, 4)), trials=2))
    assert sum(isinstance(event, TrialFinished) for event in seen) == 2
    folders = sorted((tmp_path / "search" / "trials").glob("*/*"))
    assert [folder.name for folder in folders] == ["seed-3", "seed-4"] * 2
    assert not any(
        (folder / name).exists() for folder in folders for name in ("model", "checkpoints")
    )
    assert count_models() <= before


def count_models() -> int:
    gc.collect()
    return sum(type(item) is TaskModel for item in gc.get_objects())
