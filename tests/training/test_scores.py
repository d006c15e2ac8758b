"""Scores are trained in standard deviations from their mean, and predicted in their own unit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from tests.support import jobs


def scale_file(path, factor, offset):
    """Replaces every score of a file by factor · score + offset."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["label"] = factor * row["label"] + offset
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe(bases, tmp_path):
    return jobs.recipe("score", bases("gpt2"), tmp_path / "data", epochs=3)


def read_scores(recipe):
    with open(recipe.data.train) as file:
        return np.array([json.loads(line)["label"] for line in file])


def with_range(recipe, low, high):
    return jobs.change(recipe, "task", range=(low, high))


@pytest.mark.parametrize("bias", [True, False])
def test_training_is_that_on_standardized_scores(bias, recipe, tmp_path):
    recipe = jobs.change(recipe, "head", bias=bias)
    scores = read_scores(recipe)
    mean = scores.mean() if bias else 0
    deviation = np.sqrt(np.square(scores - mean).mean())
    run = jobs.train(recipe, tmp_path / "run")
    for name in ("train.jsonl", "held-out.jsonl"):
        scale_file(tmp_path / "data" / name, 1 / deviation, -mean / deviation)
    plain = jobs.change(with_range(recipe, -9, 9), "head", standardize_scores=False)
    other = jobs.train(plain, tmp_path / "other")
    found, expected = jobs.weights(run), jobs.weights(other)
    expected["weight"] *= deviation
    if bias:
        expected["bias"] = expected["bias"] * deviation + mean
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4)
    losses = [
        [e["task_loss"] for e in jobs.log(folder) if e["event"] == "train"]
        for folder in (run, other)
    ]
    np.testing.assert_allclose(losses[0], deviation**2 * np.array(losses[1]), rtol=1e-4)


def test_the_saved_model_predicts_in_the_unit_of_the_scores(recipe, tmp_path):
    for name in ("train.jsonl", "held-out.jsonl"):
        scale_file(tmp_path / "data" / name, 1000, 5e4)
    scores = read_scores(recipe)
    run = jobs.train(with_range(recipe, 5e4, 6e4), tmp_path / "run")
    predictor = finetune.load(run)
    logged = [e["scores"] for e in jobs.log(run) if e["event"] == "evaluate" and e["best"]]
    assert predictor.evaluate() == pytest.approx(logged[-1], rel=1e-3)
    rows = [json.loads(line) for line in Path(recipe.data.train).read_text().splitlines()]
    found = [answer.label for answer in predictor.predict(rows)]
    assert np.mean(found) == pytest.approx(scores.mean(), abs=3 * scores.std())


def test_equal_scores_are_learned_too(recipe, tmp_path):
    for name in ("train.jsonl", "held-out.jsonl"):
        scale_file(tmp_path / "data" / name, 0, 3)
    run = jobs.train(jobs.change(recipe, "task", metrics=("mae",)), tmp_path / "run")
    assert jobs.result(run)["scores"]["evaluate"]["mae"] < 1


def test_the_profile_of_the_paper_trains_on_the_scores_themselves():
    recipes = [finetune.load_recipe("stsb", {"profile": name}) for name in ("modern", "paper")]
    assert [recipe.head.standardize_scores for recipe in recipes] == [True, False]
