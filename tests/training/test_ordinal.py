"""Labels in order: cumulative logits are trained, saved, scored and exported like other heads."""

import numpy as np
import pytest
import torch

import finetune
from finetune.evaluation.metrics import score_predictions
from finetune.recipe.schema import TaskConfig
from task_formats import UsageError
from tests.support import jobs
from tests.support.processes import ODD, assert_same, train_in_processes

METRICS = ("mae", "accuracy", "spearman", "log_loss")


def make_recipe(base, folder, **settings):
    recipe = jobs.recipe("classification", base, folder, **settings)
    return jobs.change(recipe, "task", ordinal=True, metrics=METRICS)


def test_a_run_with_ordered_labels(bases, tmp_path):
    recipe = make_recipe(bases("gpt2"), tmp_path / "data", epsilon=1e-3)
    run = jobs.train(recipe, tmp_path / "run")
    predictor = finetune.load(run)
    rows = jobs.rows("classification", 9, seed=1)
    predictions, task = predictor.predict(rows), recipe.task.build()
    gold = [row["label"] for row in rows]
    scores = np.array([prediction.scores for prediction in predictions])
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    result = jobs.result(run)["scores"]["evaluate"]
    assert result["mae"] == pytest.approx(abs(scores.argmax(1) - gold).mean())
    assert score_predictions(task, predictions, gold) == pytest.approx(
        {name: result[name] for name in METRICS}, rel=1e-5
    )
    assert result["loss"] == pytest.approx(result["log_loss"], rel=1e-5)
    packed, separate = (
        jobs.train(jobs.change(recipe, "train", layout=layout), tmp_path / layout)
        for layout in ("packed", "separate")
    )
    assert jobs.distance(jobs.weights(packed), jobs.weights(separate)) < 1e-5
    # The thresholds learn too.
    start = jobs.prepare(recipe).model.head.log_gaps
    assert not torch.equal(start, jobs.weights(run)["log_gaps"])


def test_two_processes_train_what_one_trains(bases, tmp_path):
    recipe = make_recipe(bases("gpt2"), tmp_path / "data", **ODD)
    one = jobs.train(recipe, tmp_path / "one")
    assert_same(one, train_in_processes(2, recipe, tmp_path / "two"))


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("entailment", "at least three labels"),
        ("multiple_choice", "no choices"),
        ("score", "ordinal needs labels"),
        ("multi_label", "ordinal needs labels, one per row"),
    ],
)
def test_an_order_needs_three_labels(kind, what):
    with pytest.raises(ValueError, match=what) as caught:
        TaskConfig.model_validate({**jobs.TASKS[kind].model_dump(), "ordinal": True})
    assert isinstance(caught.value.errors()[0]["ctx"]["error"], UsageError)
