"""Every example is a complete, short program and runs offline."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest

import finetune
from finetune.checkpointing.run_folder import read_result
from tests.conftest import ROOT
from tests.support import jobs


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Runs an example as a program in an empty folder and returns its output."""

    def run(name: str, *arguments: object) -> str:
        path = ROOT / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f'example("{path.stem}"' in source


def write_rte(home: Path) -> Path:
    """Writes 12 and 6 rows as a copy of GLUE; returns its folder."""
    folder = home / "glue" / "RTE"
    folder.mkdir(parents=True)
    for name, count in (("train", 12), ("dev", 6)):
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for n, row in enumerate(jobs.rows("entailment", count)):
            label = ["not_entailment", "entailment"][n % 2]
            lines.append(f"{n}\t{row['premise']}\t{row['hypothesis']}\t{label}")
        (folder / f"{name}.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return home / "glue"


def test_train_rte(example, bases, tmp_path) -> None:
    options = ("--base", bases("gpt2"), "--data", write_rte(tmp_path), "--epochs", 1)
    first = example("train_rte", *options)
    assert "12 examples, 1 updates on" in first
    assert "epoch 1: {'accuracy':" in first
    assert first.splitlines()[-1].startswith("It has rained. ")
    again = example("train_rte", *options)
    assert "already finished" in again
    assert again.splitlines()[-1] == first.splitlines()[-1]


def test_compare_ways(example, bases, tmp_path) -> None:
    options = ("--base", bases("gpt2"), "--data", write_rte(tmp_path), "--epochs", 1, "--seeds", 1)
    first = example("compare_ways", *options)
    assert "| from scratch | 12 | 1 |" in first
    assert first.splitlines()[-1].endswith("of 1 seeds")
    again = example("compare_ways", *options).splitlines()
    assert sum(line.endswith("(already done)") for line in again) == 6
    assert again[6:] == first.splitlines()[6:]


def test_own_csv(example, bases, tmp_path) -> None:
    for name, seed in (("train", 0), ("new", 1)):
        with open(tmp_path / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["review", "stars"])
            rows = jobs.rows("classification", 9, seed)
            writer.writerows([row["text"], row["label"]] for row in rows)
    columns = ("--text", "review", "--label", "stars", "--base", bases("gpt2"))
    held_out = ("--held-out", tmp_path / "new.csv")
    out = example("own_csv", "train.csv", "new.csv", "labelled.csv", *columns, *held_out)
    assert "trained 24 updates; scores: {'evaluate': {'accuracy':" in out
    with open(tmp_path / "labelled.csv", encoding="utf-8", newline="") as file:
        labelled = list(csv.DictReader(file))
    assert [row["review"] for row in labelled] == [row["text"] for row in rows]
    assert {row["stars"] for row in labelled} <= {"0", "1", "2"}
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in labelled)


def test_library(example, bases) -> None:
    lines = example("library", "--base", bases("gpt2")).splitlines()
    assert lines[0].startswith("<|start|> ")
    assert lines[0].endswith(" <|extract|>")
    losses = [float(line.split(": ")[1].split(",")[0]) for line in lines[1:21]]
    assert losses[-1] < losses[0]
    assert lines[-1].startswith("{'accuracy': ")


def test_classifier_pipeline(example, bases) -> None:
    out = example("classifier_pipeline", "--base", bases("gpt2"), "--epochs", 1)
    assert out.splitlines()[0].startswith("accuracy by fold: [")
    assert "best: {'classifier__learning_rate': " in out
    assert out.splitlines()[-1].startswith("pairs: [")


def test_custom_task(example, bases, tmp_path) -> None:
    threads = [
        {"messages": [{"text": row["premise"]}, {"text": "Try it."}], "thanks": n % 2}
        for n, row in enumerate(jobs.rows("entailment", 8))
    ]  # fmt: skip
    (tmp_path / "threads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in threads))
    out = example("custom_task", "threads.jsonl", "--base", bases("gpt2"))
    assert "on the training rows: {'accuracy': " in out
    assert "Prediction(id='rows/0', label=" in out
    assert read_result(tmp_path / "runs" / "threads")["updates"] == 12
    saved = finetune.load_recipe(tmp_path / "runs" / "threads" / "recipe.yaml")
    assert saved.task.format.views == (("{question}", "{answer}"),)
