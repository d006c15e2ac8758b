"""Ranges of a search, as text and as a file."""

import pytest

from finetune.recipe.loading import load_recipe
from finetune.tuning.ranges import Choices, Interval, build_space
from task_formats import UsageError


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("demo", {"base.path": "tiny"})


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("learning_rate=1e-5..5e-4:log", "train.learning_rate", Interval(1e-5, 5e-4, True, False)),
        ("train.weight_decay=0..0.1", "train.weight_decay", Interval(0, 0.1, False, False)),
        ("batch_size=4..64:log", "train.batch_size", Interval(4, 64, True, True)),
        ("warmup=0..0.2", "train.warmup", Interval(0, 0.2, False, False)),
        ("warmup=10..50", "train.warmup", Interval(10, 50, False, True)),
        ("epochs=1,2,3", "train.epochs", Choices((1, 2, 3))),
        ("schedule=linear, cosine", "train.schedule", Choices(("linear", "cosine"))),
        ("base.dropout=null,0.1", "base.dropout", Choices((None, 0.1))),
        ("base.lora=null,{rank: 8}", "base.lora", Choices((None, {"rank": 8}))),
        ("base.lora.rank=2..16", "base.lora.rank", Interval(2, 16, False, True)),
    ],
)
def test_a_range_is_read_for_its_setting(recipe, text, key, expected):
    assert build_space(recipe, [text]) == {key: expected}


def test_a_file_holds_the_same_ranges(recipe, tmp_path):
    file = tmp_path / "ranges.yaml"
    file.write_text("learning_rate: 1e-5..5e-4:log\nbase.dropout: [0, 0.1]\n")
    texts = ["learning_rate=1e-5..5e-4:log", "base.dropout=0,0.1"]
    assert build_space(recipe, [], file) == build_space(recipe, texts)
    assert next(iter(build_space(recipe, ["epochs=1,2"], file))) == "train.epochs"
    file.write_text("learning_rate: 1e-5..5e-4:log\nepochs: [0, 1]\n")
    with pytest.raises(UsageError, match=r"ranges.yaml, line 2: train.epochs must be greater"):
        build_space(recipe, [], file)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "there is no range"),
        (["learning_rate"], "is not key=range"),
        (["learning_rat=1..2"], r"unknown key 'train.learning_rat'\n.*learning_rate"),
        (["train.seed=1,2"], r"seed is not a setting to search\nUse --seeds"),
        (["data.limit=1,2"], "unknown key"),
        (["train=1,2"], "unknown key"),
        (["learning_rate=1e-3..1e-4"], r"is an empty range\nWrite the lower"),
        (["weight_decay=0..1:log"], "a logarithmic range is above 0"),
        (["learning_rate=low..high"], "is not between two numbers"),
        (["learning_rate=-1..1"], "train.learning_rate must be greater than 0"),
        (["batch_size=4.5..8"], "train.batch_size must be a valid integer"),
        (["schedule=linear,cosin"], "train.schedule must be"),
        (["epochs=2,2"], "has a choice twice"),
        (["epochs="], "has no choices"),
        (["epochs=1,2", "train.epochs=3,4"], "train.epochs is given twice"),
    ],
)
def test_what_is_wrong_with_a_range_is_said(recipe, texts, message):
    with pytest.raises(UsageError, match=message):
        build_space(recipe, texts)
