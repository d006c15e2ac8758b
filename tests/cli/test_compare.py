"""`gptft compare`: cells, table and figure."""

import json
import sys
from pathlib import Path

import pytest

from finetune.cli import main
from finetune.recipe.schema import PromptConfig
from tests.support import jobs


@pytest.fixture(scope="module")
def words(bases, tmp_path_factory) -> list[str]:
    """A small comparison; its folder is the last word."""
    home = tmp_path_factory.mktemp("compare")
    recipe = jobs.recipe("entailment", bases("gpt2"), home, epochs=1, batch_size=10)
    answers = {"no": " no", "yes": " yes"}
    prompt = PromptConfig(text="{hypothesis}", answers=answers)
    recipe = jobs.change(recipe, "task", prompt=prompt, metrics=("accuracy", "f1"))
    (home / "mine.yaml").write_text(recipe.to_yaml())
    words = ["compare", "--task", str(home / "mine.yaml"), "--seeds", "0-1", "--shots", "0", "2"]
    return [*words, "-o", str(home / "study")]


@pytest.fixture(scope="module")
def done(words) -> Path:
    """The folder of the comparison with the cells of majority, prompting and one fine-tuning."""
    only = ["--only", "majority", "ask*", "lambda-0.5-seed-0"]
    assert main([*words, *only]) == 0
    return Path(words[-1])


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_chosen_cells_are_run_and_printed(words, done, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*words, "--only", "lambda-0.5-*", "ask-0"]) == 0
    out = capsys.readouterr().out
    cells = [line for line in lines(out) if line[0] in ("1/3", "2/3", "3/3")]
    assert [line[1] for line in cells] == ["ask-0", "lambda-0.5-seed-0", "lambda-0.5-seed-1"]
    assert [line[-2:] == ["already", "done"] for line in cells] == [True, True, False]
    arms = [line[0] for line in lines(out)]
    assert [arms.count(name) for name in ("majority", "0-shot", "2-shot", "fine-tuned,")] == [1] * 4
    table = json.loads((done / "table.json").read_text())
    assert [row["arm"] for row in table["rows"]] == [
        "majority", "0-shot", "2-shot", "fine-tuned, λ = 0.5",
    ]  # fmt: skip
    assert table["rows"][3]["seeds"] == [0, 1]
    assert set(table["rows"][3]["scores"]) == {"accuracy", "f1"}
    assert not (done / "curve.png").exists()


def test_cells_are_listed_with_their_scores(words, done, capsys):
    assert main([*words, "--list"]) == 0
    listed = {line[0]: line[1:] for line in lines(capsys.readouterr().out)}
    assert list(listed)[:4] == ["majority", "ask-0", "ask-2-seed-0", "ask-2-seed-1"]
    assert len(listed) == 4 + 6
    assert listed["scratch-seed-0"] == ["to", "do"]
    assert listed["majority"][0] == "accuracy"
    assert main([*words, "--list", "--only", "ask*"]) == 0
    chosen = [line[0] for line in lines(capsys.readouterr().out)]
    assert chosen == ["ask-0", "ask-2-seed-0", "ask-2-seed-1"]


def test_a_cell_without_a_model_names_options_that_keep_it(words, done, tmp_path, capsys):
    study = tmp_path / "study"
    words = [*words[:-1], str(study)]
    cell = study / "lambda-0-seed-0"
    assert main([*words, "--only", cell.name]) == 0
    assert main(["evaluate", str(cell)]) == 2
    error = capsys.readouterr().err
    assert "this run is finished and has no model" in error
    again = ["--keep-models", "--overwrite", "--only", cell.name]
    assert error.split()[-4:] == again
    capsys.readouterr()
    assert main([*words, "--only", "lambda-0-seed-0", "--keep-models"]) == 0
    assert "without keeping its model; add --overwrite" in capsys.readouterr().out
    assert main([*words, *again]) == 0
    assert main(["evaluate", str(cell)]) == 0


def test_prompting_can_be_skipped(words, capsys):
    words = [word for word in words if word not in ("--shots", "0", "2")]
    assert main([*words, "--no-shots", "--list", "--scratch", "train.learning_rate=0.1"]) == 0
    listed = [line[0] for line in lines(capsys.readouterr().out)]
    assert not [name for name in listed if name.startswith("ask")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "scratch-sed-0"], "Did you mean 'scratch-seed-0'"),
        (["--fractions", "0", "2"], "0 is not a fraction of the labels"),
        (["--seeds", "x"], "invalid seeds 'x'"),
        (["--from-scratch"], "trains from scratch as well"),
        (["--epochs", "2"], "another train.epochs: 1.0, not 2.0"),
        (["--list", "--only", "none"], "no cell 'none' in this study"),
        (["--seed", "3"], "no such option: --seed"),
        (["--scratch", "foo"], "--scratch foo is not key=value Write it as --scratch train."),
        (["--scratch", "train.seed=3"], "train.seed cannot be set for training from scratch only"),
        (["--scratch", "train.rate=1"], "unknown key 'train.rate'"),
    ],
)
def test_wrong_use_is_refused_with_exit_code_2(words, done, capsys, more, message):
    assert main([*words, *more, "--no-plot"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_figure_without_matplotlib_is_refused_before_any_cell(
    monkeypatch, words, capsys, tmp_path
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*words[:-1], str(tmp_path / "study"), "--fractions", "0.5"]) == 2
    assert "pip install 'gptft[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
