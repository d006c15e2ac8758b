"""Studies: their cells, that each runs once, and the table."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.comparison import (
    CellFinished,
    CellStarted,
    Design,
    compare,
    events,
    list_cells,
    plan_cells,
    read_table,
)
from finetune.comparison import study as study_module
from finetune.comparison.study import predict_majority
from finetune.comparison.table import NOTES, CellResult, build_table, format_row, write_markdown
from finetune.evaluation.metrics import bootstrap_interval, score_predictions
from finetune.recipe.schema import PromptConfig, Recipe
from finetune.training.loop import Step
from task_formats import UsageError
from tests.support import jobs


def make_recipe(base: Path, folder: Path, **settings) -> Recipe:
    """A task with a prompt and a metric that is computed quickly, and a job of two updates."""
    recipe = jobs.recipe("entailment", base, folder, **{"epochs": 1, "batch_size": 10, **settings})
    prompt = PromptConfig(text="{premise} {hypothesis}", answers={"no": " no", "yes": " yes"})
    return jobs.change(recipe, "task", prompt=prompt, metrics=("accuracy",))


@pytest.fixture(scope="module")
def study(bases, tmp_path_factory):
    """A finished study: recipe, folder, design, table."""
    folder = tmp_path_factory.mktemp("study")
    design = Design(seeds=(0, 1), shots=(0, 2), fractions=(0.5, 1))
    recipe = make_recipe(bases("gpt2"), folder / "data")
    return recipe, folder / "cells", design, compare(recipe, folder / "cells", design)


METHODS = ("ask-2", "scratch", "lambda-0", "lambda-0.5", "lambda-0.5-labels-0.5")
NAMES = ["majority", "ask-0", *(f"{method}-seed-{n}" for method in METHODS for n in (0, 1))]


def test_a_study_has_a_cell_for_every_method_and_seed(study):
    recipe, _, design, table = study
    cells = {cell.name: cell for cell in plan_cells(recipe, design)}
    assert list(cells) == NAMES
    trains = {name: cell.recipe.train for name, cell in cells.items() if cell.trains}
    assert [part.seed for part in trains.values()] == [0, 1] * 4
    assert [part.lm_coefficient for part in trains.values()] == [0.5] * 2 + [0] * 2 + [0.5] * 4
    assert all(c.recipe.base.from_scratch == c.name.startswith("scratch") for c in cells.values())
    half = trains["lambda-0.5-labels-0.5-seed-1"]
    assert (half.fraction, half.epochs) == (0.5, 1 / math.sqrt(0.5))
    # Without a number of epochs every run chooses it by its own number of rows.
    plain = jobs.change(recipe, "train", epochs=None)
    trained = [cell.recipe.train for cell in plan_cells(plain, design) if cell.trains]
    assert {part.epochs for part in trained} == {None}
    methods = dict.fromkeys(cell.method for cell in cells.values())
    assert [row.method for row in table.rows] == list(methods)


def test_notes_explain_the_curve_and_the_precision_of_prompting(study):
    recipe, folder, design, table = study
    assert "√f" in table.notes[-2]
    assert f"computed in {recipe.train.precision};" in table.notes[-1]
    results = [result for _, result in list_cells(recipe, folder, design) if result]
    plain = [r for r in results if r.cell.fraction == 1 and r.cell.kind != "prompt"]
    assert build_table(recipe, plain).notes == NOTES


def test_a_single_trained_seed_has_no_interval(study):
    recipe, folder, design, _ = study
    results = {cell.name: result for cell, result in list_cells(recipe, folder, design)}
    table = build_table(recipe, [results[name] for name in ("majority", "ask-0", "scratch-seed-0")])
    intervals = [format_row(row, table.metrics)[4] for row in table.rows]
    assert [bool(text) for text in intervals] == [True, True, False]


def test_a_finished_study_is_only_read(study):
    recipe, folder, design, table = study
    run = list(events(recipe, folder, design))
    assert [event.reused for event in run] == [True] * len(NAMES)
    assert read_table(recipe, folder, design) == table
    assert (folder / "table.md").read_text() == write_markdown(table)


def test_a_cell_equals_a_run_of_its_recipe(study, tmp_path):
    recipe, folder, design, _ = study
    cell = next(c for c in plan_cells(recipe, design) if c.name == "lambda-0-seed-1")
    jobs.train(cell.recipe, tmp_path / "alone")
    assert jobs.log(tmp_path / "alone") == jobs.log(folder / cell.name)
    assert jobs.result(tmp_path / "alone") == jobs.result(folder / cell.name)


def test_models_are_kept_on_request_and_checkpoints_never(study, tmp_path):
    recipe, folder, design, _ = study
    names = {path.name for path in (folder / "scratch-seed-0").iterdir()}
    assert names == {".gptft", ".lock", "recipe.yaml", "metrics.jsonl", "result.json"}
    compare(recipe, tmp_path, design, only=["scratch-seed-1"], keep_models=True)
    assert (tmp_path / "scratch-seed-1" / "model" / "config.json").exists()
    assert not (tmp_path / "scratch-seed-1" / "checkpoints").exists()


def test_selected_cells_make_a_table_of_their_own(study, tmp_path):
    recipe, _, design, table = study
    alone = compare(recipe, tmp_path, design, only=["lambda-0-*"])
    assert alone.rows[0].collapsed is None
    assert format_row(alone.rows[0], alone.metrics)[-1] == "not checked"
    assert [row.scores for row in alone.rows] == [table.rows[4].scores]
    finished = [cell.name for cell, result in list_cells(recipe, tmp_path, design) if result]
    assert finished == ["lambda-0-seed-0", "lambda-0-seed-1"]


def test_an_interrupted_study_continues_at_the_unfinished_cell(study, tmp_path):
    recipe, _, design, table = study
    run = events(recipe, tmp_path, design)
    for event in run:
        if isinstance(event, Step) and (tmp_path / "scratch-seed-1").exists():
            break
    run.close()
    again = list(events(recipe, tmp_path, design))
    reused = [e.result.cell.name for e in again if isinstance(e, CellFinished) and e.reused]
    assert reused == NAMES[: NAMES.index("scratch-seed-1")]
    assert next(e for e in again if isinstance(e, CellStarted)).cell.name == "scratch-seed-1"
    scores = [row.scores for row in read_table(recipe, tmp_path, design).rows]
    assert scores == [row.scores for row in table.rows]


def test_cells_with_another_recipe_are_refused(study):
    recipe, folder, design, _ = study
    other = jobs.change(recipe, "train", epochs=2)
    with pytest.raises(UsageError, match=r"another train.epochs: 1.0, not 2"):
        list(events(other, folder, design, only=["majority"]))
    # Values that do not change results may differ, and untrained cells do not depend on epochs.
    same = jobs.change(recipe, "train", tokens_per_forward=64, layout="separate")
    assert read_table(same, folder, design).rows
    assert plan_cells(other, design)[:4] == plan_cells(recipe, design)[:4]


def test_cells_scored_on_different_rows_are_refused(study, tmp_path):
    recipe, _, design, _ = study
    part = recipe.data.model_copy(update={"evaluate": str(tmp_path / "held-out.jsonl")})
    recipe = recipe.model_copy(update={"data": part})
    jobs.write_rows(tmp_path / "held-out.jsonl", jobs.rows("entailment", 5, seed=1))
    compare(recipe, tmp_path / "study", design, only=["majority", "ask-0"])
    jobs.write_rows(tmp_path / "held-out.jsonl", jobs.rows("entailment", 6, seed=1))
    with pytest.raises(UsageError, match="majority and scratch-seed-0 were scored on different"):
        compare(recipe, tmp_path / "study", design, only=["scratch-seed-0"])
    compare(recipe, tmp_path / "study", design, only=["majority", "ask-0"], overwrite=True)


def test_seeds_and_fractions_may_be_added_later(study):
    recipe, folder, _, _ = study
    wider = Design(seeds=(0, 1, 2), shots=(0, 2), fractions=(0.25, 0.5))
    missing = {cell.name for cell, result in list_cells(recipe, folder, wider) if not result}
    quarters = {f"lambda-0.5-labels-0.25-seed-{seed}" for seed in (0, 1, 2)}
    assert missing == {f"{method}-seed-2" for method in METHODS} | quarters


def test_overwrite_repeats_selected_cells(study, tmp_path):
    recipe, _, design, _ = study
    only = ["scratch-seed-0", "majority"]
    compare(recipe, tmp_path, design, only=only)
    first = jobs.log(tmp_path / "scratch-seed-0")
    run = list(events(recipe, tmp_path, design, only=only, overwrite=True))
    assert not any(event.reused for event in run if isinstance(event, CellFinished))
    assert sum(isinstance(event, Step) for event in run) == 2
    assert jobs.log(tmp_path / "scratch-seed-0") == first


def test_too_few_rows_for_the_shots_are_refused_before_the_first_cell(study, tmp_path):
    recipe, *_ = study
    few = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": 6})})
    with pytest.raises(UsageError, match="32 shots need 33 different labelled examples"):
        list(events(few, tmp_path, Design(seeds=(0,))))
    assert not list(tmp_path.iterdir())
    # Cells that are not selected need no demonstrations.
    compare(few, tmp_path, Design(seeds=(0,)), only=["majority", "ask-4*"])


def test_training_from_scratch_may_have_another_learning_rate(study):
    recipe, *_ = study
    cells = plan_cells(recipe, Design((0,), (), scratch={"train.learning_rate": "1e-2"}))
    rates = {cell.name: cell.recipe.train.learning_rate for cell in cells if cell.trains}
    assert rates == {"scratch-seed-0": 1e-2, "lambda-0-seed-0": 1e-3, "lambda-0.5-seed-0": 1e-3}


def test_a_task_without_a_prompt_has_no_prompted_cells(bases, tmp_path):
    recipe = jobs.recipe("score", bases("gpt2"), tmp_path, lm_coefficient=0)
    names = [cell.name for cell in plan_cells(recipe, Design(seeds=(3,)))]
    trained = ["scratch-seed-3", "lambda-0-seed-3", "lambda-0.5-seed-3"]
    assert names == ["majority", *trained]


@pytest.mark.parametrize("kind", list(jobs.TASKS))
def test_the_majority_class_is_the_most_frequent_training_label(bases, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(study_module, "bootstrap_interval", partial(bootstrap_interval, draws=20))
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path)
    task = recipe.task.build()
    result = predict_majority(recipe, task)
    labels, gold = (
        [task.example(row, "x").label for row in jobs.rows(kind, count, seed)]
        for count, seed in ((20, 0), (9, 1))
    )
    if kind == "score":
        assert result["answer"] == pytest.approx(sum(labels) / 20)
    elif kind == "multi_label":
        assert result["answer"] == task.labels.name(np.sum(labels, axis=0) >= 10)
    else:
        assert result["answer"] == task.labels.name(max(sorted(set(labels)), key=labels.count))
    majority = task.labels.predict_majority(labels)
    scores = score_predictions(task, [majority] * 9, gold)
    assert (result["scores"], result["labels"]) == ({"evaluate": scores}, 20)
    assert all(low <= scores[name] <= high for name, (low, high) in result["intervals"].items())


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.floats(0, 1))
def test_rows_hold_medians_bounds_and_collapsed_seeds(values, majority_score):
    recipe = Recipe(task=jobs.TASKS["classification"])
    seeds = tuple(range(len(values)))
    cells = {cell.name: cell for cell in plan_cells(recipe, Design(seeds, ()))}
    interval = {"accuracy": [0, 1]}
    results = [CellResult(cells["majority"], {"accuracy": majority_score}, 9, interval, 1.0, "x")]
    for seed, value in zip(seeds, values, strict=True):
        cell = cells[f"lambda-0-seed-{seed}"]
        results.append(CellResult(cell, {"accuracy": value}, 9, None, 2.0, "x"))
    majority, tuned = build_table(recipe, results).rows
    assert majority.scores["accuracy"][:4] == (majority_score, 0, 1, "rows")
    bounds = (np.median(values), min(values), max(values))
    assert tuned.scores["accuracy"] == (*bounds, "seeds", tuple(values))
    assert tuned.collapsed == tuple(n for n in seeds if values[n] <= majority_score)
    assert tuned.seconds == 2.0 * len(values)
    flagged = format_row(tuned, ["accuracy"])[-1]
    assert flagged == (f"{len(tuned.collapsed)} of {len(values)}" if tuned.collapsed else "")
