"""A limit on rows that are sorted by label, and training rows of one label."""

import json
from collections import Counter

import pytest

from finetune.cli import main
from finetune.data import open_file, read_examples
from finetune.data.limits import LimitedRows
from finetune.recipe.schema import TaskConfig

TASK = TaskConfig(
    format="classification", columns={"text": "text", "label": "label"}, labels=("a", "b", "c")
).build()


def write(path, labels):
    lines = "".join(f"it was the film number {n},{label}\n" for n, label in enumerate(labels))
    path.write_text(f"text,label\n{lines}")
    return path


def read(path, limit):
    examples, report = read_examples(TASK, open_file(path), "x", limit=limit)
    return list(examples), report


def test_a_limit_takes_a_stratified_part_of_sorted_rows(tmp_path):
    path = write(tmp_path / "a.csv", "a" * 60 + "b" * 30 + "c" * 30)
    everything, _ = read(path, None)
    found, report = read(path, 20)
    assert Counter(example.label for example in found) == {0: 10, 1: 5, 2: 5}
    assert report.is_drawn
    assert report.rows == 20
    # They are rows of the file, in its order and with their ids there.
    assert [example for example in everything if example in found] == found
    assert read(path, 20)[0] == found
    # Also if the first rows have two of the labels.
    found, _ = read(path, 80)
    assert Counter(example.label for example in found) == {0: 40, 1: 20, 2: 20}


def test_a_limit_takes_the_first_rows_of_others(tmp_path):
    for labels in ("abc" * 40, "a" * 120, "a" * 10):
        path = write(tmp_path / "a.csv", labels)
        everything, _ = read(path, None)
        found, report = read(path, 20)
        assert (found, report.is_drawn) == (everything[:20], False)


def test_a_part_of_a_part_keeps_its_indices(tmp_path):
    path = write(tmp_path / "a.csv", "a" * 60 + "b" * 60)
    outer = LimitedRows(open_file(path), TASK, 40)
    inner = LimitedRows(outer, TASK, 10)
    rows = [row for _, row in open_file(path)]
    for part in (outer, inner):
        assert [rows[n] for n, _ in zip(part.indices(), part.read(), strict=False)] == [
            row for _, row in part.read()
        ]
    assert Counter(row["label"] for _, row in inner) == {"a": 5, "b": 5}


@pytest.fixture
def train(tmp_path, bases, capsys):
    def run(*options):
        command = ["train", "--task", str(tmp_path / "a.yaml"), "--base", str(bases("gpt2"))]
        command += ["-o", str(tmp_path / "run"), "--epochs", "1", "--max-tokens", "32"]
        status = main([*command, "--precision", "fp32", *options])
        captured = capsys.readouterr()
        return status, " ".join((captured.out + captured.err).split())

    return run


def test_a_limit_of_a_sorted_file_trains_all_labels(tmp_path, train):
    path = write(tmp_path / "a.csv", "a" * 60 + "b" * 60)
    assert main(["new", str(path), "-o", str(tmp_path / "a.yaml"), "--hold-out", "0.2"]) == 0
    status, told = train("--limit", "20")
    assert status == 0
    assert "is sorted by label: the limit takes a stratified part of the rows" in told
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["scores"]) == 1
    assert "has the label" not in told


def test_training_rows_of_one_label_are_refused(tmp_path, train):
    path = write(tmp_path / "a.csv", "ab" * 20)
    assert main(["new", str(path), "-o", str(tmp_path / "a.yaml")]) == 0
    write(path, "a" * 40)
    status, told = train()
    assert status == 2
    assert "a.csv has the label 'a' Give training rows of other labels too." in told
