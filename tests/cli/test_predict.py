"""`gptft evaluate` and `gptft predict`."""

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from finetune.checkpointing.run_folder import read_result
from finetune.cli import main
from finetune.data import read_rows
from finetune.evaluation.predictor import Predictor
from tests.cli.conftest import read_scores, round_scores
from tests.support import processes
from tests.support.jobs import write_rows

FIRST_TEXT = {"entailment": "premise", "similarity": "one", "multiple_choice": "story"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current folder is not that of the run."""
    monkeypatch.chdir(tmp_path)


def run(capsys, *words):
    """Standard output of a command that succeeds."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def read(name):
    return [row for _, row in read_rows(name)]


def test_evaluate_gives_the_scores_of_training(trained, capsys):
    result = round_scores(read_result(trained.run)["scores"])
    assert read_scores(run(capsys, "evaluate", trained.run)) == result
    more = read_scores(run(capsys, "evaluate", trained.run, "--split", "more"))
    assert more == {"more": result["more"]}
    both = run(capsys, "evaluate", trained.run, "--split", "train", "--split", "evaluate")
    assert list(read_scores(both)) == ["train", "evaluate"]


@pytest.mark.parametrize("trained", ["entailment"], indirect=True)
def test_the_precision_can_be_another_than_that_of_the_training(trained, tmp_path, capsys):
    shutil.copytree(trained.run, tmp_path / "fast")
    recipe = tmp_path / "fast" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("precision: fp32", "precision: bf16"))
    words = [trained.folder / "held-out.jsonl", "--output-format", "jsonl"]
    expected = run(capsys, "predict", trained.run, *words)
    assert run(capsys, "predict", "fast", *words) != expected
    assert run(capsys, "predict", "fast", *words, "--precision", "fp32") == expected
    scores = run(capsys, "evaluate", trained.run)
    assert run(capsys, "evaluate", "fast", "--precision", "fp32") == scores


def test_predictions_have_the_scores_of_training(trained, capsys):
    run(capsys, "predict", trained.run, trained.folder / "held-out.jsonl", "-o", "out.jsonl")
    given, predicted = read(trained.folder / "held-out.jsonl"), read("out.jsonl")
    assert [{name: row[name] for name in given[0]} for row in predicted] == given
    result = next(iter(read_result(trained.run)["scores"].values()))
    if trained.kind == "similarity":
        squares = [(row["predicted_label"] - row["label"]) ** 2 for row in predicted]
        assert sum(squares) / len(squares) == pytest.approx(result["mse"], rel=1e-5)
        return
    names = ["no", "yes"] if trained.kind == "entailment" else list("ABCD")
    correct = 0
    for row in predicted:
        probabilities = [row[f"probability_{name}"] for name in names]
        known = [value for value in probabilities if value is not None]
        assert sum(known) == pytest.approx(1)
        assert len(known) == (2 if trained.kind == "entailment" else len(row["choices"]))
        assert row["predicted_label"] == names[probabilities.index(max(known))]
        label = row["label"] if trained.kind == "entailment" else names[row["label"]]
        correct += row["predicted_label"] == label
    assert correct / len(predicted) == pytest.approx(result["accuracy"])


def test_every_file_format_holds_the_same(trained, capsys, monkeypatch):
    file = trained.folder / "more.jsonl"
    run(capsys, "predict", trained.run, file, "-o", "all.jsonl")
    rows = read("all.jsonl")
    labels = [row["predicted_label"] for row in rows]
    for name in ("out.csv", "out.parquet", "out.json"):
        run(capsys, "predict", trained.run, file, "-o", name)
        again = read(name)
        expected = [str(label) for label in labels] if name == "out.csv" else labels
        assert [row["predicted_label"] for row in again] == expected
        assert list(again[0]) == list(rows[0])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    piped = run(capsys, "predict", trained.run, "-", "--input-format", "jsonl")
    assert [json.loads(line) for line in piped.splitlines()] == rows


def test_an_unusable_row_keeps_its_place_or_stops_the_command(trained, tmp_path, capsys):
    good = [
        {name: value for name, value in row.items() if name != "label"}
        for row in read(trained.folder / "more.jsonl")
    ]
    field = FIRST_TEXT[trained.kind]
    write_rows(
        tmp_path / "new.jsonl", [*good[:3], {**good[3], field: "  ", "question": ""}, *good[4:]]
    )
    with open("new.jsonl", "a", encoding="utf-8") as file:
        file.write('{"premise": \n')
    words = ["predict", str(trained.run), "new.jsonl", "-o", "out.jsonl"]
    assert main([*words, "--on-bad-row", "stop"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: new.jsonl, line 4: empty text")
    assert "out.jsonl.part. Go on with --resume." in error
    assert not (tmp_path / "out.jsonl").exists()
    part = [json.loads(line) for line in Path("out.jsonl.part").read_text().splitlines()]
    assert [row[field] for row in part] == [row[field] for row in good[:3]]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert "Labelled 11 rows into out.jsonl." in error
    assert "2 rows without a label" in error
    assert "no label: new.jsonl, line 4: empty text" in error
    predicted = read("out.jsonl")
    assert not Path("out.jsonl.part").exists()
    assert len(predicted) == 13
    assert [row[field] for row in predicted[:3]] == [row[field] for row in good[:3]]
    assert [row["label"] is None for row in predicted] == [n in (3, 12) for n in range(13)]
    assert [row["error"] is None for row in predicted] == [n not in (3, 12) for n in range(13)]
    assert predicted[3]["error"].startswith("line 4: empty text for")
    assert predicted[12]["error"].startswith("line 13: not JSON")
    # Without labels in the input the prediction is simply the label.
    assert "predicted_label" not in predicted[0]
    run(capsys, *words[:-1], "all.csv")
    with open("all.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["error"] for row in table] == [row["error"] or "" for row in predicted]
    assert table[3]["label"] == ""


def predict_until_a_signal(run: Path, rows: Path, folder: Path, number: int) -> int:
    """The exit code of `gptft predict`, which gets a signal after its first prediction."""
    stream = Predictor.stream

    def interrupted(self, examples, progress):
        for prediction in stream(self, examples, progress):
            yield prediction
            os.kill(os.getpid(), number)
            time.sleep(60)

    Predictor.stream = interrupted
    if number == signal.SIGHUP:  # Where tests run under nohup it is ignored.
        signal.signal(number, signal.SIG_DFL)
    os.chdir(folder)
    return main(["predict", str(run), str(rows), "-o", "out.csv", "--device", "cpu"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_old_file_alone(number, trained, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    rows = trained.folder / "more.jsonl"
    output = tmp_path.with_suffix(".output")
    arguments = (trained.run, rows, tmp_path, number)
    child = processes.start(predict_until_a_signal, *arguments, output=output)
    child.join()
    assert child.exitcode == 128 + number, output.read_text()
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.csv.part"]
    assert (tmp_path / "out.csv").read_text() == "old"
    assert len((tmp_path / "out.csv.part").read_text().splitlines()) == 2
    assert "note: What was done before is in out.csv.part." in output.read_text()
