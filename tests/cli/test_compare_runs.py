"""`gptft compare RUN RUN`: tests of the difference between finished runs."""

import re

import numpy as np
import pytest

import finetune
from finetune.cli import main
from finetune.evaluation.statistics import mcnemar_test, paired_bootstrap
from finetune.reports import analysis
from tests.support import jobs


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """Two runs of one task that differ in their rate."""
    home = tmp_path_factory.mktemp("runs")
    made = []
    for name, rate in (("slow", 1e-5), ("fast", 5e-3)):
        recipe = jobs.recipe("entailment", bases("gpt2"), home / "data", held_out=30, epochs=2)
        made.append(jobs.train(jobs.change(recipe, "train", learning_rate=rate), home / name))
    return made


def test_scores_differences_and_mcnemars_test_are_printed(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    # The metrics of a thousand draws take seconds.
    few = lambda first, second, rows, _: paired_bootstrap(first, second, rows, 50)  # noqa: E731
    monkeypatch.setattr(analysis, "paired_bootstrap", few)
    assert main(["compare", *map(str, runs)]) == 0
    output = capsys.readouterr().out
    predictors = [finetune.load(run) for run in runs]
    evaluations = [predictor.evaluate_split() for predictor in predictors]
    scores = [evaluation.result.scores for evaluation in evaluations]
    for metric in ("accuracy", "f1", "matthews"):
        row = next(line.split() for line in output.splitlines() if line.strip().startswith(metric))
        one, other = (score[metric] for score in scores)
        assert row[1:4] == [f"{one:.4f}", f"{other:.4f}", f"{other - one:+.4f}"]
    gold = np.array([example.label for example in evaluations[0].split.examples])
    names = predictors[0].task.labels.names
    correct = [
        np.array([names.index(p.label) for p in evaluation.result.predictions]) == gold
        for evaluation in evaluations
    ]
    test = mcnemar_test(*correct)
    assert "30 rows, paired bootstrap" in output
    assert f"is right on {test.only_first} rows" in output
    assert f"on {test.only_second}: McNemar's test p = {test.p_value:.3f}" in output
    # Compared with itself a run has no difference.
    assert main(["compare", str(runs[0]), str(runs[0])]) == 0
    output = capsys.readouterr().out
    assert re.search(r"accuracy.*\+0\.0000.*1\.000", output)


@pytest.mark.slow
def test_runs_on_other_rows_need_a_split(runs, bases, tmp_path, capsys):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epochs=1)
    other = jobs.write_rows(tmp_path / "data" / "other.jsonl", jobs.rows("entailment", 8, seed=5))
    recipe = jobs.change(recipe, "data", evaluate=other)
    third = jobs.train(recipe, tmp_path / "third")
    assert main(["compare", str(runs[0]), str(third)]) == 2
    assert "different rows" in " ".join(capsys.readouterr().err.split())
    assert main(["compare", str(runs[0]), str(runs[1]), str(third), "--split", other]) == 0
    assert capsys.readouterr().out.count("8 rows, paired bootstrap") == 2


def test_mistakes_are_errors(runs, capsys):
    one, other = map(str, runs)
    for words, message in (
        ([one], "one run has nothing to be compared with"),
        ([], "nothing to compare"),
        ([one, other, "--epochs", "3"], "train.epochs has no effect on finished runs"),
        ([one, other, "--task", "rte"], "--task has no effect on finished runs"),
        (["--task", "rte", "--split", "x"], "--split is for finished runs"),
        ([one, "runs/nothere"], "no such run directory"),
    ):
        assert main(["compare", *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
