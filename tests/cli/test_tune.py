"""`gptft tune`: lines, table, the recipe it writes."""

import re

import pytest

from finetune.cli import main
from tests.support import jobs


@pytest.fixture(scope="module")
def words(bases, tmp_path_factory) -> list[str]:
    """A search of two trials; its folder is the last word."""
    home = tmp_path_factory.mktemp("tune")
    recipe = jobs.recipe("entailment", bases("gpt2"), home, epochs=1, batch_size=10)
    (home / "mine.yaml").write_text(recipe.to_yaml())
    ranges = ["--range", "learning_rate=1e-4..1e-2:log", "schedule=linear,cosine"]
    words = ["tune", "--task", str(home / "mine.yaml"), *ranges, "--trials", "2"]
    return [*words, "-o", str(home / "search")]


def test_trials_are_listed_and_the_best_recipe_trains(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(words) == 0
    out = capsys.readouterr().out
    trials = [line for line in out.splitlines() if line.startswith(("1/2", "2/2"))]
    assert all("learning_rate=" in line and "accuracy" in line for line in trials)
    assert "  train.learning_rate: 0.0001..0.01:log" in out.splitlines()
    header = r"trial +learning_rate +schedule +accuracy"
    table = re.split(header, out)[1]
    assert table.count("finished") == 2
    command = next(line for line in out.splitlines() if line.startswith("  gptft train --task "))
    best = command.split()[-1]
    assert best == f"{words[-1]}/best.yaml"
    assert main(["train", "--task", best, "-o", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    # A finished search is shown again, and trains nothing.
    assert main(words) == 0
    again = capsys.readouterr().out
    assert re.split(header, again)[1] == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--range", "epochs=0..2"], "train.epochs must be greater than 0"),
        (["--learning-rate", "1e-3"], "train.learning_rate has a range and a value"),
        (["--set", "train.seed=3"], "train.seed has no effect"),
        (["--seeds", "many"], "--seeds: invalid seeds"),
    ],
)
def test_wrong_options_are_refused(words, capsys, change, message):
    assert main([*words, *change]) == 2
    assert message in capsys.readouterr().err
