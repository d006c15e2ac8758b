"""Studies of a task: which cells there are, that each is done once, and what the table says."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.checkpointing.run_folder import read_log
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
from finetune.comparison.cells import select_cells
from finetune.comparison.majority import predict_majority
from finetune.comparison.table import NOTES, CellResult, build_table, format_row, write_markdown
from finetune.evaluation.metrics import score
from finetune.recipe.schema import PromptConfig, Recipe
from finetune.training.loop import Step
from task_formats import UsageError
from tests.support import jobs

pytestmark = pytest.mark.usefixtures("no_flush")


def asked(kind: str, base: Path, folder: Path, **settings) -> Recipe:
    """A job with a prompt, of two updates."""
    settings = {"epochs": 1, "batch_size": 10, **settings}
    recipe = jobs.recipe(kind, base, folder, **settings)
    answers = {"no": " no", "yes": " yes"}
    prompt = PromptConfig(text="{premise} {hypothesis}", answers=answers)
    return jobs.change(recipe, "task", prompt=prompt)


@pytest.fixture(scope="module")
def study(bases, tmp_path_factory):
    """A whole study, done once: recipe, folder, design, table."""
    folder = tmp_path_factory.mktemp("study")
    design = Design(seeds=(0, 1), shots=(0, 2), fractions=(0.5, 1))
    recipe = asked("entailment", bases("gpt2"), folder / "data")
    return recipe, folder / "cells", design, compare(recipe, folder / "cells", design)


NAMES = [
    "majority", "ask-0", "ask-2-seed-0", "ask-2-seed-1", "scratch-seed-0", "scratch-seed-1",
    "lambda-0-seed-0", "lambda-0-seed-1", "lambda-0.5-seed-0", "lambda-0.5-seed-1",
    "lambda-0.5-labels-0.5-seed-0", "lambda-0.5-labels-0.5-seed-1",
]  # fmt: skip


def test_a_study_has_a_cell_for_every_way_and_seed(study):
    recipe, _, design, table = study
    cells = {cell.name: cell for cell in plan_cells(recipe, design)}
    assert list(cells) == NAMES
    trains = {name: cell.recipe.train for name, cell in cells.items() if cell.work == "train"}
    assert [part.seed for part in trains.values()] == [0, 1] * 4
    assert [part.lm_coefficient for part in trains.values()] == [0.5] * 2 + [0] * 2 + [0.5] * 4
    assert [cell.recipe.base.from_scratch for cell in cells.values()] == [
        name.startswith("scratch") for name in cells
    ]
    half = trains["lambda-0.5-labels-0.5-seed-1"]
    assert (half.fraction, half.epochs) == (0.5, 1 / math.sqrt(0.5))
    assert [row.arm for row in table.rows] == list(dict.fromkeys(c.arm for c in cells.values()))


def test_the_table_says_how_long_few_labels_are_trained_on_and_what_was_asked_in(study):
    recipe, folder, design, table = study
    assert [("√f" in note, "fp32" in note) for note in table.notes[-2:]] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert f"asked in {recipe.train.precision};" in table.notes[-1]
    found = [one for _, one in list_cells(recipe, folder, design) if one and one.cell.shots == 0]
    plain = [one for one in found if one.cell.fraction == 1 and one.cell.work != "ask"]
    assert build_table(recipe, plain).notes == NOTES


def test_one_trained_seed_has_no_interval(study):
    recipe, folder, design, _ = study
    done = {cell.name: found for cell, found in list_cells(recipe, folder, design) if found}
    table = build_table(recipe, [done[name] for name in ("majority", "ask-0", "scratch-seed-0")])
    intervals = [format_row(row, table.metrics)[4] for row in table.rows]
    assert ["to" in text for text in intervals] == [True, True, False]
    assert intervals[2] == ""


def test_a_study_that_is_done_is_only_read(study):
    recipe, folder, design, table = study
    happening = list(events(recipe, folder, design))
    assert [event.read for event in happening] == [True] * len(NAMES)
    assert read_table(recipe, folder, design) == table
    assert (folder / "table.md").read_text() == write_markdown(table)


def test_a_cell_is_the_run_that_its_recipe_makes_alone(study, tmp_path):
    recipe, folder, design, _ = study
    cell = next(c for c in plan_cells(recipe, design) if c.name == "lambda-0-seed-1")
    jobs.train(cell.recipe, tmp_path / "alone")
    assert jobs.log(tmp_path / "alone") == jobs.log(folder / cell.name)
    assert jobs.result(tmp_path / "alone") == jobs.result(folder / cell.name)


def test_neither_models_nor_states_are_kept_unless_they_are_wanted(study, tmp_path):
    recipe, folder, design, _ = study
    assert {path.name for path in (folder / "scratch-seed-0").iterdir()} == {
        ".lock", "run.json", "recipe.yaml", "metrics.jsonl", "result.json",
    }  # fmt: skip
    compare(recipe, tmp_path, design, only=["scratch-seed-1"], keep_models=True)
    assert (tmp_path / "scratch-seed-1" / "model" / "config.json").exists()
    assert not (tmp_path / "scratch-seed-1" / "checkpoints").exists()


def test_one_cell_alone_gives_a_table_of_what_is_there(study, tmp_path):
    recipe, _, design, table = study
    alone = compare(recipe, tmp_path, design, only=["lambda-0-*"])
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "lambda-0-seed-0", "lambda-0-seed-1",
    }  # fmt: skip
    # Without the majority class nobody knows which runs are no better.
    assert alone.rows[0].collapsed is None
    assert format_row(alone.rows[0], alone.metrics)[-1] == "not checked"
    whole = next(row for row in table.rows if row.lm_coefficient == 0)
    assert [row.scores for row in alone.rows] == [whole.scores]
    done = [cell.name for cell, found in list_cells(recipe, tmp_path, design) if found]
    assert done == ["lambda-0-seed-0", "lambda-0-seed-1"]


def test_a_study_that_was_stopped_goes_on_where_it_was(study, tmp_path):
    recipe, _, design, table = study
    happening = events(recipe, tmp_path, design)
    for event in happening:
        if isinstance(event, Step) and (tmp_path / "scratch-seed-1").exists():
            break
    happening.close()
    again = list(events(recipe, tmp_path, design))
    read = [
        event.found.cell.name for event in again if isinstance(event, CellFinished) and event.read
    ]
    assert read == NAMES[: NAMES.index("scratch-seed-1")]
    assert next(e for e in again if isinstance(e, CellStarted)).cell.name == "scratch-seed-1"
    assert [row.scores for row in read_table(recipe, tmp_path, design).rows] == [
        row.scores for row in table.rows
    ]


def test_another_recipe_is_another_study(study):
    recipe, folder, design, _ = study
    other = jobs.change(recipe, "train", epochs=2)
    with pytest.raises(UsageError, match=r"another train.epochs: 1.0, not 2"):
        list(events(other, folder, design, only=["majority"]))
    # What does not change results may differ, and what is not trained has no epochs.
    same = jobs.change(recipe, "train", tokens_per_forward=64, layout="separate")
    assert read_table(same, folder, design).rows
    assert plan_cells(other, design)[:4] == plan_cells(recipe, design)[:4]


def test_cells_of_other_rows_make_no_table(study, tmp_path):
    recipe, _, design, _ = study
    part = recipe.data.model_copy(update={"evaluate": str(tmp_path / "held-out.jsonl")})
    recipe = recipe.model_copy(update={"data": part})
    jobs.write_rows(tmp_path / "held-out.jsonl", jobs.rows("entailment", 5, seed=1))
    compare(recipe, tmp_path / "study", design, only=["majority", "ask-0"])
    jobs.write_rows(tmp_path / "held-out.jsonl", jobs.rows("entailment", 6, seed=1))
    with pytest.raises(UsageError, match="majority and scratch-seed-0 were scored on different"):
        compare(recipe, tmp_path / "study", design, only=["scratch-seed-0"])
    compare(recipe, tmp_path / "study", design, only=["majority", "ask-0"], overwrite=True)


@pytest.mark.parametrize("content", ['{"scores": {}}', '{"scores": {"x": {}}}', "{}", "[1]", "{"])
def test_a_damaged_result_is_told(study, tmp_path, content):
    recipe, _, design, _ = study
    compare(recipe, tmp_path, design, only=["majority"])
    (tmp_path / "majority" / "result.json").write_text(content)
    with pytest.raises(UsageError, match="majority"):
        read_table(recipe, tmp_path, design)


def test_seeds_and_parts_may_be_added_later(study):
    recipe, folder, _, _ = study
    wider = Design(seeds=(0, 1, 2), shots=(0, 2, 3), fractions=(0.25, 0.5))
    missing = [cell.name for cell, found in list_cells(recipe, folder, wider) if not found]
    assert missing == [
        "ask-2-seed-2", "ask-3-seed-0", "ask-3-seed-1", "ask-3-seed-2", "scratch-seed-2",
        "lambda-0-seed-2", "lambda-0.5-seed-2", "lambda-0.5-labels-0.25-seed-0",
        "lambda-0.5-labels-0.25-seed-1", "lambda-0.5-labels-0.25-seed-2",
        "lambda-0.5-labels-0.5-seed-2",
    ]  # fmt: skip


def test_done_anew(study, tmp_path):
    recipe, _, design, _ = study
    only = ["scratch-seed-0", "majority"]
    compare(recipe, tmp_path, design, only=only)
    first = read_log(tmp_path / "scratch-seed-0")
    happening = list(events(recipe, tmp_path, design, only=only, overwrite=True))
    assert not any(event.read for event in happening if isinstance(event, CellFinished))
    assert sum(isinstance(event, Step) for event in happening) == 2
    assert len(list(read_log(tmp_path / "scratch-seed-0"))) == len(list(first))


def test_shots_that_the_rows_cannot_supply_are_refused_before_the_first_cell(study, tmp_path):
    recipe, *_ = study
    few = recipe.model_copy(update={"data": recipe.data.model_copy(update={"limit": 6})})
    with pytest.raises(UsageError, match="32 shots need 33 different labelled examples"):
        list(events(few, tmp_path, Design(seeds=(0,))))
    assert not list(tmp_path.iterdir())
    # What is not asked needs no examples.
    compare(few, tmp_path, Design(seeds=(0,)), only=["majority", "ask-4*"])


def test_runs_from_scratch_may_have_a_rate_of_their_own(study):
    recipe, *_ = study
    cells = plan_cells(recipe, Design((0,), (), scratch={"train.learning_rate": "1e-2"}))
    rates = {cell.name: cell.recipe.train.learning_rate for cell in cells if cell.work == "train"}
    assert rates == {"scratch-seed-0": 1e-2, "lambda-0-seed-0": 1e-3, "lambda-0.5-seed-0": 1e-3}


def test_a_task_without_a_prompt_is_not_asked(bases, tmp_path):
    recipe = jobs.recipe("score", bases("gpt2"), tmp_path, lm_coefficient=0)
    names = [cell.name for cell in plan_cells(recipe, Design(seeds=(3,)))]
    assert names == ["majority", "scratch-seed-3", "lambda-0-seed-3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda recipe: Design(seeds=()), "a study needs a seed"),
        (lambda recipe: Design(fractions=(0.5, 2)), "2 is no part of the labels"),
        (lambda recipe: select_cells(plan_cells(recipe, Design()), ["scratch-sed-0"]), "no cell"),
        (
            lambda recipe: plan_cells(jobs.change(recipe, "base", from_scratch=True), Design()),
            "trains from scratch as well",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(study, make, message):
    with pytest.raises(UsageError, match=message):
        make(study[0])


@pytest.mark.parametrize("kind", list(jobs.TASKS))
def test_the_majority_answer_is_the_commonest_of_the_training_labels(bases, tmp_path, kind):
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path)
    task = recipe.task.build()
    found = predict_majority(recipe, task)
    labels, gold = (
        [task.example(row, "x").label for row in jobs.rows(kind, count, seed)]
        for count, seed in ((20, 0), (9, 1))
    )
    expected = (
        sum(labels) / 20
        if kind == "score"
        else task.labels.name(max(sorted(set(labels)), key=labels.count))
    )
    assert found.answer == pytest.approx(expected) if kind == "score" else found.answer == expected
    names = [task.labels.name(label) for label in gold]
    positive = recipe.task.positive or "same"
    assert found.scores == score(recipe.task.metrics, [found.answer] * 9, names, positive)
    assert found.rows == 20
    for name, (low, high) in found.intervals.items():
        assert low <= found.scores[name] <= high


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.floats(0, 1))
def test_the_table_is_medians_bounds_and_what_collapsed(values, floor):
    recipe = Recipe(task=jobs.TASKS["classification"])
    seeds = tuple(range(len(values)))
    cells = {cell.name: cell for cell in plan_cells(recipe, Design(seeds, ()))}
    found = [CellResult(cells["majority"], {"accuracy": floor}, 9, {"accuracy": [0, 1]}, 1.0, "x")]
    for seed, value in zip(seeds, values, strict=True):
        cell = cells[f"lambda-0-seed-{seed}"]
        found.append(CellResult(cell, {"accuracy": value}, 9, None, 2.0, "x"))
    majority, tuned = build_table(recipe, found).rows
    assert majority.scores["accuracy"][:4] == (floor, 0, 1, "rows")
    ranked, half = sorted(values), len(values) // 2
    middle = ranked[half] if len(values) % 2 else (ranked[half - 1] + ranked[half]) / 2
    assert tuned.scores["accuracy"] == (middle, ranked[0], ranked[-1], "seeds", tuple(values))
    assert tuned.collapsed == tuple(n for n in seeds if values[n] <= floor)
    assert tuned.seconds == 2.0 * len(values)
    flagged = format_row(tuned, ["accuracy"])[-1]
    assert flagged == (f"{len(tuned.collapsed)} of {len(values)}" if tuned.collapsed else "")
