"""`gptft cross-validate`: folds, their table, and a prediction of every row."""

import csv
import json
from statistics import fmean, stdev

import pytest

import finetune
from finetune.cli import main
from finetune.evaluation.metrics import score_predictions
from finetune.recipe.schema import HELD_OUT
from task_formats import Prediction
from tests.support import jobs

FOLDS = 3


@pytest.fixture(scope="module")
def words(bases, tmp_path_factory):
    home = tmp_path_factory.mktemp("folds")
    recipe = jobs.recipe("classification", bases("gpt2"), home, epochs=1, batch_size=20)
    rows = jobs.rows("classification", 21)
    names = ["text", "label", "fold"]
    with open(home / "train.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, "fold": "own"} for row in rows)
        writer.writerow({"text": "unlabelled", "label": "-", "fold": "own"})
    recipe = jobs.change(recipe, "data", train=str(home / "train.csv"))
    recipe = jobs.change(recipe, "task", unlabelled=("-",))
    (home / "mine.yaml").write_text(recipe.to_yaml())
    words = ["cross-validate", "--task", str(home / "mine.yaml"), "--folds", str(FOLDS)]
    return [*words, "-o", str(home / "study")]


@pytest.fixture(scope="module")
def study(words, tmp_path_factory):
    from pathlib import Path

    assert main(words) == 0
    return Path(words[-1])


def test_every_row_is_predicted_by_the_run_that_has_not_seen_it(study):
    with open(study / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 22
    assert [row["text"] for row in rows[:21]] == [
        row["text"] for row in jobs.rows("classification", 21)
    ]
    assert rows[21]["predicted_in_fold"] == rows[21]["predicted_label"] == ""
    by_fold = {}
    for index, row in enumerate(rows[:21]):
        assert row["fold"] == "own"
        by_fold.setdefault(int(row["predicted_in_fold"]), []).append(index)
    assert sorted(by_fold) == [1, 2, 3]
    assert {len(indices) for indices in by_fold.values()} == {7}
    for fold, indices in by_fold.items():
        predictor = finetune.load(study / f"fold-{fold}")
        trained = predictor.evaluate_split("train").split.examples
        seen = {int(example.id.rpartition("/")[2]) for example in trained}
        assert seen == set(range(21)) - set(indices)
        expected = predictor.predict([rows[index] for index in indices])
        assert [p.label for p in expected] == [rows[n]["predicted_label"] for n in indices]


def test_the_table_has_mean_spread_and_the_scores_of_all_rows_together(study, words, capsys):
    written = json.loads((study / "cross_validation.json").read_text())
    folds = [jobs.result(study / f"fold-{k}")["scores"][HELD_OUT] for k in (1, 2, 3)]
    assert written["folds"] == folds
    accuracies = [fold["accuracy"] for fold in folds]
    assert written["mean"]["accuracy"] == pytest.approx(fmean(accuracies))
    assert written["deviation"]["accuracy"] == pytest.approx(stdev(accuracies))
    with open(study / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["predicted_label"]]
    task = jobs.TASKS["classification"].build()
    predictions = [Prediction("", row["predicted_label"]) for row in rows]
    together = score_predictions(task, predictions, [task.labels.parse(r["label"]) for r in rows])
    assert written["all_rows"] == pytest.approx(together)
    # Folds that are finished are not trained again.
    times = [(study / f"fold-{k}" / "result.json").stat().st_mtime_ns for k in (1, 2, 3)]
    capsys.readouterr()
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "already finished" in output
    assert f"{written['mean']['accuracy']:.4f}" in output
    assert times == [(study / f"fold-{k}" / "result.json").stat().st_mtime_ns for k in (1, 2, 3)]


def test_finished_folds_with_other_settings_are_refused(study, words, capsys):
    assert main([*words, "--epochs", "2"]) == 2
    assert "another train.epochs: 1" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--folds", "2"]) == 2
    assert "another data.hold_out" in " ".join(capsys.readouterr().err.split())
