"""Runs that read long texts in windows."""

import numpy as np
import pytest

import finetune
from finetune.cli import main
from finetune.recipe.schema import WindowsConfig
from task_formats import UsageError
from tests.support import jobs
from tests.support.processes import ODD, assert_same, train_in_processes

SHORT = {"max_tokens": 10}


@pytest.fixture(scope="module")
def recipe(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    made = jobs.recipe("multiple_choice", bases("gpt2"), folder / "data", epochs=1, **SHORT)
    return jobs.change(made, "task", windows=WindowsConfig(stride=3))


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    return jobs.train(recipe, tmp_path_factory.mktemp("run") / "run")


def test_a_run_evaluates_and_predicts_in_windows(run):
    predictor = finetune.load(run)
    evaluation = predictor.evaluate_split()
    assert max(example.windows for example in evaluation.split.examples) > 1
    scores = jobs.result(run)["scores"]["evaluate"]
    assert evaluation.result.scores == pytest.approx(scores, abs=1e-5)
    rows = jobs.rows("multiple_choice", 9, seed=1)
    predicted = predictor.predict(rows)
    assert [p.label for p in predicted] == [p.label for p in evaluation.result.predictions]
    alone = [predictor.predict([row])[0].scores for row in rows]
    for one, other in zip(predicted, alone, strict=True):
        assert one.scores == pytest.approx(other, abs=1e-5)


def test_the_model_is_bound_to_its_windows(run):
    text = (run / "recipe.yaml").read_text()
    assert "stride: 3" in text
    try:
        (run / "recipe.yaml").write_text(text.replace("stride: 3", "stride: 4"))
        with pytest.raises(UsageError, match=r"trained with task\.windows"):
            finetune.load(run)
    finally:
        (run / "recipe.yaml").write_text(text)


def test_two_processes_train_what_one_trains(bases, tmp_path):
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", **ODD, **SHORT)
    recipe = jobs.change(recipe, "task", windows=WindowsConfig(stride=3, reduce="max"))
    one = jobs.train(recipe, tmp_path / "one")
    assert_same(one, train_in_processes(2, recipe, tmp_path / "two"))


def test_preview_says_it_and_export_refuses(run, tmp_path, capsys):
    assert main(["preview", str(run / "recipe.yaml"), "--rows", "20"]) == 0
    assert "windows; this is the first" in capsys.readouterr().out
    command = ["export", str(run), "--to", "sequence-classification", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    assert "windows" in capsys.readouterr().err


def test_many_truncated_rows_are_a_warning(bases, tmp_path):
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path, epochs=1, **SHORT)
    job = jobs.prepare(recipe)
    warning = job.started(0).truncation_warning
    lost = job.examples.arrays.truncated_tokens
    assert f"{(lost > 0).mean():.0%} of the training rows are longer than 10 tokens" in warning
    read = sum(len(e.prefix) + max(map(len, e.endings)) for e in job.examples)
    assert f"{lost.sum() / (lost.sum() + read):.0%} of all tokens are not read" in warning
    assert "task.windows.stride=128" in warning
    windows = jobs.change(recipe, "task", windows=WindowsConfig(stride=3))
    assert jobs.prepare(windows).truncation_warning == ""
    few = jobs.change(recipe, "task", windows=WindowsConfig(stride=1, most=2))
    assert "raise task.windows.most" in jobs.prepare(few).truncation_warning
    enough = jobs.change(recipe, "train", max_tokens=48)
    assert not np.any(jobs.prepare(enough).examples.arrays.truncated_tokens)
    assert jobs.prepare(enough).truncation_warning == ""
