"""`gptft tasks`, `gptft show` and `gptft schema`."""

import json

import pytest

from finetune.cli import main
from finetune.recipe.loading import load_recipe, parse_recipe, recipe_schema, shipped_recipes


@pytest.mark.parametrize("columns", ["50", "80", "160"])
def test_tasks_lists_every_recipe_at_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(shipped_recipes()) <= {line.split()[0] for line in lines if line.split()}
    assert max(map(len, lines[:-1])) <= int(columns)


def test_show_prints_a_recipe_that_loads_back_with_its_overrides(capsys):
    about = "[bold]mine[/bold] \\[x]"
    assert main(["show", "rte", "--epochs", "5", "--set", f"about={about}"]) == 0
    recipe = parse_recipe(capsys.readouterr().out)
    assert (recipe.train.epochs, recipe.about) == (5, about)
    assert recipe.task == load_recipe("rte").task


@pytest.mark.parametrize(
    "words",
    [
        "rte --set train.epochs=5 train.seed=7",
        "--set train.epochs=5 train.seed=7 rte",
        "--set train.epochs=5 rte --set train.seed=7",
        "--set train.epochs=5 train.seed=7 --quiet rte",
    ],
)
def test_several_values_are_set_before_and_after_the_task(words, capsys):
    assert main(["show", *words.split()]) == 0
    assert parse_recipe(capsys.readouterr().out) == load_recipe(
        "rte", {"train.epochs": 5, "train.seed": 7}
    )


def test_schema_is_that_of_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == recipe_schema()
    assert main(["schema", "-o", "recipe.json"]) == 0
    assert (tmp_path / "recipe.json").read_text() == printed
