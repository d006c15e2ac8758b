"""Several labels at once: trained, tuned, saved and predicted like the other kinds."""

import csv
import json
import re
from html import unescape

import numpy as np
import pytest
from torch.nn.functional import binary_cross_entropy_with_logits

import finetune
from finetune.checkpointing.model_folder import THRESHOLDS
from finetune.cli import main
from finetune.evaluation.thresholds import best_f1_threshold
from task_formats import UsageError
from tests.support import jobs
from tests.support.processes import ODD, assert_same, train_in_processes
from tests.support.samples import LAYOUTS

NAMES = jobs.TASKS["multi_label"].labels
CALM = {"epsilon": 1e-3}


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory):
    """A finished run, whose training rows have labels as text."""
    folder = tmp_path_factory.mktemp("multi_label")
    recipe = jobs.recipe("multi_label", bases("gpt2"), folder / "data", **CALM)
    return jobs.train(recipe, folder / "run")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_loss_of_an_update_is_that_of_torch(layout, weights, bases, tmp_path):
    settings = {"layout": layout, "tokens_per_forward": 40, "batch_size": 20}
    recipe = jobs.recipe(
        "multi_label", bases("gpt2"), tmp_path / "data", class_weights=weights, **settings
    )
    passes, loss, logits, labels = jobs.first_update(recipe)
    assert passes > 1
    present = labels.sum(0)
    weight = None if weights is None else (20 - present) / present
    expected = binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_two_processes_train_what_one_trains(bases, tmp_path):
    recipe = jobs.recipe("multi_label", bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    two = train_in_processes(2, recipe, tmp_path / "two")
    assert_same(one, two)
    tables = [json.loads((run / "model" / THRESHOLDS).read_text()) for run in (one, two)]
    assert tables[0] == pytest.approx(tables[1], abs=1e-5)


def test_thresholds_are_those_of_the_evaluation_split_and_can_be_edited(run):
    predictor = finetune.load(run)
    rows = jobs.rows("multi_label", 9, seed=1)
    scores = np.array([prediction.scores for prediction in predictor.predict(rows)])
    gold = np.array([[name in row["label"] for name in NAMES] for row in rows])
    table = json.loads((run / "model" / THRESHOLDS).read_text())
    for k, name in enumerate(NAMES):
        assert table[name] == pytest.approx(best_f1_threshold(scores[:, k], gold[:, k]), abs=1e-5)
    try:
        (run / "model" / THRESHOLDS).write_text(json.dumps(dict.fromkeys(NAMES, 0.0)))
        assert {p.label for p in finetune.load(run).predict(rows)} == {NAMES}
        (run / "model" / THRESHOLDS).write_text(json.dumps({"sun": 0.5}))
        with pytest.raises(UsageError, match=r"thresholds for \['sun'\]"):
            finetune.load(run)
    finally:
        (run / "model" / THRESHOLDS).write_text(json.dumps(table))


def test_predict_writes_labels_and_a_probability_per_label(run, tmp_path):
    rows = [{"text": row["text"], "label": ""} for row in jobs.rows("multi_label", 5, seed=4)]
    source = tmp_path / "rows.csv"
    with open(source, "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    predictions = finetune.load(run).predict(rows)
    for name in ("out.csv", "out.jsonl"):
        assert main(["predict", str(run), str(source), "-o", str(tmp_path / name)]) == 0
    with open(tmp_path / "out.csv", newline="") as file:
        written = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, line, prediction in zip(written, lines, predictions, strict=True):
        assert json.loads(row["predicted_label"]) == line["predicted_label"]
        assert line["predicted_label"] == list(prediction.label)
        found = [float(row[f"probability_{name}"]) for name in NAMES]
        assert found == pytest.approx(prediction.scores, abs=1e-6)
    # What was predicted can be trained on.
    labels = jobs.TASKS["multi_label"].build().labels
    for row, prediction in zip(written, predictions, strict=True):
        assert labels.name(labels.parse(row["predicted_label"])) == prediction.label


def test_a_part_of_the_training_rows_is_stratified_by_their_labels(bases, tmp_path):
    recipe = jobs.recipe("multi_label", bases("gpt2"), tmp_path / "data", train=40, fraction=0.5)
    assert len(jobs.prepare(recipe).examples) == 20


@pytest.mark.slow
def test_a_report_shows_what_evaluate_prints(run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["report", str(run), "-o", str(tmp_path / "page.html"), "--rows", "2"]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())
    for name, value in finetune.load(run, "cpu", precision="fp32").evaluate().items():
        assert f" {name} {value:.4f} " in text
