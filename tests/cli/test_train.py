"""`gptft train` and `gptft resume`, and tasks defined in Python."""

import json
import sys

from finetune.checkpointing.run_folder import read_recipe, read_result
from finetune.cli import main
from finetune.recipe.loading import load_recipe
from tests.cli.conftest import read_scores, round_scores
from tests.support.jobs import rows, write_rows


def test_the_resolved_recipe_is_saved_and_the_scores_are_printed(trained):
    saved = load_recipe(trained.run / "recipe.yaml")
    assert (saved.train.epochs, saved.train.warmup, saved.train.batch_size) == (1, 0.1, 4)
    assert "weight_decay: 0.01" in read_recipe(trained.run)
    assert "12 examples, 3 updates, evaluated on 12" in trained.output
    assert "update 3/3 100%" in trained.output
    assert "Trained 3 updates" in trained.output
    assert read_scores(trained.output) == round_scores(read_result(trained.run)["scores"])
    assert "gptft predict runs/mine FILE -o OUT" in trained.output


def test_a_finished_run_is_not_trained_again(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained.folder)
    before = (trained.run / "metrics.jsonl").read_bytes()
    assert main(["resume", "runs/mine"]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["train", "--task", "mine.yaml"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (trained.run / "metrics.jsonl").read_bytes() == before


def test_a_run_that_stops_early_prints_the_updates_it_trained(bases, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--task", "demo", "--base", str(bases("gpt2")), "--max-tokens", "48"]
    words += ["--set", "train.patience=1", "--epochs", "6", "--learning-rate", "1e-9"]
    assert main([*words, "--limit", "8", "--precision", "fp32"]) == 0
    assert "Trained 2 updates" in capsys.readouterr().out


MODULE = """
from task_formats import FORMATS, Classes, Task

task = Task(
    format=FORMATS["classification"],
    columns={"text": "both", "label": "label"},
    labels=Classes.of(["no", "yes"]),
    metrics=("accuracy",),
    convert_row=lambda row: {**row, "both": row["premise"] + " / " + row["hypothesis"]},
)
"""


def test_a_task_defined_in_python_trains_evaluates_and_predicts(
    bases, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_task_for_runs.py").write_text(MODULE)
    write_rows(tmp_path / "rows.jsonl", rows("entailment", 8))
    name = "own_task_for_runs:task"
    words = ["train", "--task", name, "--base", str(bases("gpt2")), "--epochs", "1"]
    words += ["--set", "data.train=rows.jsonl", "--set", "data.evaluate=rows.jsonl"]
    assert main([*words, "--max-tokens", "48", "--precision", "fp32"]) == 0
    trained = next(iter(read_scores(capsys.readouterr().out).values()))
    assert main(["evaluate", "runs/task", "--task", name]) == 0
    assert next(iter(read_scores(capsys.readouterr().out).values())) == trained
    assert main(["predict", "runs/task", "rows.jsonl", "--task", name]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    accuracy = sum(row["predicted_label"] == row["label"] for row in predicted) / len(predicted)
    assert f"{accuracy:.4f}" == trained["accuracy"]
