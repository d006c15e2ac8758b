"""Soft labels: probabilities of the classes, through the mechanism of all labels."""

import csv
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import finetune
from finetune.cli import main
from finetune.data.held_out import draw_held_out
from finetune.data.sources import open_rows
from finetune.models.losses import TaskLossOptions, task_loss
from task_formats import Classes, RowError
from tests.support import jobs
from tests.support.processes import ODD, assert_same, train_in_processes
from tests.support.samples import LAYOUTS

NAMES = ("bad", "middling", "good")
SOFT = Classes(NAMES, {"0": "bad", "1": "middling", "2": "good"}, soft=True)


def soft_rows(count, seed=0):
    draw = np.random.default_rng(seed)
    rows = jobs.rows("classification", count, seed)
    return [{**row, "label": draw.dirichlet(np.ones(3)).tolist()} for row in rows]


def soft_recipe(base, folder, **settings):
    recipe = jobs.recipe("classification", base, folder, **settings)
    train = jobs.write_rows(folder / "train.jsonl", soft_rows(20))
    evaluate = jobs.write_rows(folder / "evaluate.jsonl", soft_rows(9, seed=1))
    recipe = jobs.change(recipe, "data", train=train, evaluate=evaluate)
    return jobs.change(recipe, "task", soft_labels=True, metrics=("accuracy", "log_loss"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", [None, {"bad": 3.0, "good": 0.25}])
def test_the_loss_of_an_update_is_that_of_torch(layout, weights, bases, tmp_path):
    settings = {"layout": layout, "tokens_per_forward": 40, "batch_size": 20}
    settings |= {"class_weights": weights, "label_smoothing": 0.1} if weights else {}
    recipe = soft_recipe(bases("gpt2"), tmp_path, **settings)
    passes, loss, logits, labels = jobs.first_update(recipe)
    assert passes > 1
    assert labels.shape == (20, 3)
    weight = None if weights is None else torch.tensor([3.0, 1.0, 0.25])
    smoothing = 0.1 if weights else 0.0
    expected = cross_entropy(logits, labels, weight, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


def test_certain_labels_have_the_loss_of_classes():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    certain = torch.nn.functional.one_hot(labels).float()
    certain[5] = torch.nan
    options = TaskLossOptions(is_distribution=True)
    expected = task_loss(logits, torch.where(torch.arange(6) == 5, -100, labels))
    torch.testing.assert_close(task_loss(logits, certain, options), expected)


def test_two_processes_train_what_one_trains(bases, tmp_path):
    recipe = soft_recipe(bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    assert_same(one, train_in_processes(2, recipe, tmp_path / "two"))


@pytest.mark.parametrize(
    "value",
    [
        [0.25, 0.0, 0.75],
        "[0.25, 0, 0.75]",
        {"0": 0.25, "good": 0.75},
        '{"bad": 0.25, "good": 0.75}',
        "{'bad': 1, 'good': 3}",
        {"bad": "0.25", "middling": "", "good": 0.75},
        np.array([0.25, 0, 0.75]),
    ],
)
def test_probabilities_are_read_as_people_write_them(value):
    assert SOFT.parse(value) == pytest.approx((0.25, 0, 0.75))
    assert SOFT.name(SOFT.parse(value)) == "good"


def test_a_label_alone_is_certain():
    assert SOFT.parse("middling") == SOFT.parse(1) == (0, 1, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.25, 0.75], "2 probabilities for 3 labels"),
        ([0.25, 0.25, 0.2], "add up to 0.7"),
        ([1.5, -0.5, 0], "no probabilities"),
        ([0, 0, 0], "no probabilities"),
        ({"bad": 1, "0": 0}, "two probabilities"),
        ({"worse": 1}, "unknown label 'worse'"),
        (["a", "b", "c"], "probability 'a' is not a number"),
    ],
)
def test_what_is_no_probability_is_an_error(value, message):
    with pytest.raises(RowError, match=message):
        SOFT.parse(value)


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory):
    """A run on CSV files with a column for each label, and held-out rows."""
    folder = tmp_path_factory.mktemp("soft")
    recipe = soft_recipe(bases("gpt2"), folder, epochs=1)
    with open(folder / "votes.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *NAMES])
        writer.writerows([row["text"], *row["label"]] for row in soft_rows(30))
    columns = {"text": "text", "label": NAMES}
    recipe = jobs.change(recipe, "task", columns=columns)
    data = {"train": str(folder / "votes.csv"), "evaluate": None, "hold_out": 0.3}
    return jobs.train(jobs.change(recipe, "data", **data), folder / "run")


def test_metrics_and_loss_of_a_run(run):
    predictor = finetune.load(run)
    evaluation = predictor.evaluate_split()
    labels = np.array([example.label for example in evaluation.split.examples])
    table = np.array([prediction.scores for prediction in evaluation.result.predictions])
    scores = jobs.result(run)["scores"]["held_out"]
    assert scores["accuracy"] == (labels.argmax(1) == table.argmax(1)).mean()
    rows = np.arange(len(table))
    log_loss = -np.log(table[rows, labels.argmax(1)]).mean()
    assert scores["log_loss"] == pytest.approx(log_loss, rel=1e-4)
    expected = cross_entropy(
        torch.from_numpy(evaluation.result.logits).double(), torch.from_numpy(labels)
    )
    assert scores["loss"] == pytest.approx(float(expected), rel=1e-4)
    assert (run / "model" / "calibration.json").exists()


def test_rows_are_held_out_by_their_most_probable_label(run):
    predictor = finetune.load(run)
    data = predictor.recipe.data
    held_out = draw_held_out(open_rows(data, data.train), data, predictor.task)
    classes = np.array([np.argmax(row["label"]) for row in soft_rows(30)])
    counts = np.bincount(classes, minlength=3)
    held = np.bincount(classes[held_out], minlength=3)
    assert (abs(held - 0.3 * counts) < 1).all()


def test_report_doctor_and_predict_know_soft_labels(run, tmp_path, capsys):
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    main(["doctor", str(run)])
    assert "labels: " in capsys.readouterr().out
    recipe = (run / "recipe.yaml").read_text()
    assert "soft_labels: true" in recipe
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "good"}) + "\n")
    assert main(["predict", str(run), str(rows), "-o", str(tmp_path / "out.jsonl")]) == 0
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["label"] in NAMES
