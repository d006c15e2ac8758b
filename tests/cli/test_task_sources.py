"""Tasks by name, by file, and out of Python modules."""

import sys

import pytest

from finetune.cli.task_sources import find_split, find_task
from finetune.recipe.schema import DataConfig
from task_formats import UsageError

MODULE = """
from task_formats import FORMATS, Classes, Task

reviews = Task(
    format=FORMATS["classification"],
    columns={"text": "body", "label": "stars"},
    labels=Classes.of({1: "bad", 2: "bad", 5: "good"}),
    convert_row=lambda row: {**row, "body": row["title"] + ": " + row["body"]},
)
answer = 42
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"tasks_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_task_of_a_module_in_the_current_folder(module):
    source = find_task(f"{module}:reviews", {"data.train": "rows.csv", "train.epochs": "2"})
    assert (source.name, source.recipe.train.epochs) == ("reviews", 2)
    row = {"title": "Well", "body": "done", "stars": 5}
    example = source.task.example(row, "a")
    assert (example.fields["text"], example.label) == ("Well: done", 1)
    assert source.recipe.task.build().labels == source.task.labels


def test_the_nearest_task_of_a_module_is_suggested(module):
    with pytest.raises(UsageError, match=r"no task 'review' in .*\n.*'reviews'"):
        find_task(f"{module}:review", {})


def test_splits_go_by_their_role_or_their_own_name():
    data = DataConfig(path="p", train="t", evaluate="dev", extra={"mm": "mismatched"})
    names = ("train", "evaluate", "dev", "mm", "mismatched")
    assert [find_split(data, n) for n in names] == ["t", "dev", "dev", "mismatched", "mismatched"]
    with pytest.raises(UsageError, match=r"no data\.predict"):
        find_split(data, "predict")
