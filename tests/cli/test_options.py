"""Flags and --set become one mapping of dotted keys, which overrides the recipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.cli.options import (
    RECIPE_FLAGS,
    collect_overrides,
    name_flag,
    parse_seeds,
)
from finetune.cli.task_sources import find_task
from finetune.recipe.schema import Recipe
from task_formats import UsageError

keys = st.from_regex(r"[a-z]+\.[a-z_]+", fullmatch=True)


@given(st.dictionaries(keys, st.text(), max_size=5))
def test_every_set_comes_through_with_its_whole_value(settings):
    texts = [f"{key}={value}" for key, value in settings.items()]
    assert collect_overrides({"train.seed": None}, texts) == settings


@pytest.mark.parametrize("text", ["train.epochs", "=5", " = 5", ""])
def test_a_set_without_key_or_value_is_refused(text):
    with pytest.raises(UsageError, match="not key=value"):
        collect_overrides({}, [text])


def test_a_key_given_twice_is_refused():
    with pytest.raises(UsageError, match=r"train\.epochs is given twice"):
        collect_overrides({"train.epochs": 3.0}, ["train.epochs=5"])
    with pytest.raises(UsageError, match="given twice"):
        collect_overrides({}, ["base.path=a", "base.path=b"])


@pytest.mark.parametrize("key", RECIPE_FLAGS)
def test_every_flag_names_a_value_of_the_recipe(key):
    section, _, name = key.partition(".")
    field = Recipe.model_fields[section]
    assert not name or name in field.annotation.model_fields
    assert name_flag(key).startswith("--")


def test_default_recipe_and_flag_come_in_this_order(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "task: {format: classification, columns: {text: t, label: l}, labels: [a, b]}\n"
        "data: {train: rows.csv, evaluate: null}\n"
        "train: {epochs: 5, seed: 7}\n"
    )
    train = find_task(str(recipe), {"train.seed": 8}).recipe.train
    assert (train.batch_size, train.epochs, train.seed) == (32, 5, 8)


def test_a_folder_on_the_command_line_is_seen_from_the_current_one(tmp_path, monkeypatch):
    (tmp_path / "copies").mkdir()
    monkeypatch.chdir(tmp_path)
    changes = {"data.path": "copies", "base.path": "gpt2"}
    recipe = find_task("rte", changes).recipe
    assert recipe.data.path == str(tmp_path / "copies")
    assert recipe.base.path == "gpt2"


def test_seeds_are_ranges_and_lists():
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("0,0-1,7") == [0, 1, 7]
    for wrong in ("", "4-2", "4294967296", "one", "-1", "0-4294967295"):
        with pytest.raises(UsageError, match="invalid seeds"):
            parse_seeds(wrong)
