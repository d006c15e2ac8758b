"""The verb compare as it is typed: its cells, its table, its figure."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from finetune.cli import main
from finetune.cli.comparison_display import make_comparison_table
from finetune.comparison import Row, ScoreSummary, Table, curve
from finetune.comparison.table import format_row
from finetune.recipe.loading import dump_recipe
from finetune.recipe.schema import PromptConfig
from finetune.storage import files
from task_formats import UsageError
from tests.support import jobs

pytestmark = pytest.mark.usefixtures("no_flush")


@pytest.fixture(scope="module")
def words(bases, tmp_path_factory) -> list[str]:
    """A small study of a recipe of one's own; its folder is the last word."""
    home = tmp_path_factory.mktemp("compare")
    recipe = jobs.recipe("entailment", bases("gpt2"), home, epochs=1, batch_size=10)
    answers = {"no": " no", "yes": " yes"}
    recipe = jobs.change(recipe, "task", prompt=PromptConfig(text="{hypothesis}", answers=answers))
    (home / "mine.yaml").write_text(dump_recipe(recipe))
    words = ["compare", "--task", str(home / "mine.yaml"), "--seeds", "0-1", "--shots", "0", "2"]
    return [*words, "-o", str(home / "study")]


@pytest.fixture(scope="module")
def done(words) -> Path:
    """The study's folder; done are majority, asking and the fine-tuning of one seed."""
    only = ["--only", "majority", "ask*", "lambda-0.5-seed-0"]
    assert main([*words, *only]) == 0
    return Path(words[-1])


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_chosen_cells_are_done_and_shown(words, done, capsys, monkeypatch):
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
    assert set(table["rows"][3]["scores"]) == {"accuracy", "f1", "matthews"}
    assert not (done / "curve.png").exists()


def test_cells_are_listed_with_what_they_found(words, done, capsys):
    assert main([*words, "--list"]) == 0
    listed = {line[0]: line[1:] for line in lines(capsys.readouterr().out)}
    assert list(listed)[:4] == ["majority", "ask-0", "ask-2-seed-0", "ask-2-seed-1"]
    assert len(listed) == 4 + 6
    assert listed["scratch-seed-0"] == ["to", "do"]
    assert listed["majority"][0] == "accuracy"
    assert main([*words, "--list", "--only", "ask*"]) == 0
    chosen = [line[0] for line in lines(capsys.readouterr().out)]
    assert chosen == ["ask-0", "ask-2-seed-0", "ask-2-seed-1"]


def test_a_cell_that_kept_no_model_says_how_to_get_one(words, done, tmp_path, capsys):
    """And what it says works."""
    study = tmp_path / "study"
    words = [*words[:-1], str(study)]
    assert main([*words, "--only", "lambda-0-seed-0", "majority"]) == 0
    assert main(["evaluate", str(study / "majority")]) == 2
    assert "nothing was trained here" in capsys.readouterr().err
    cell = study / "lambda-0-seed-0"
    assert main(["predict", str(cell), str(study.parent / "none.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "this run is finished, and its model was not kept" in error
    assert "gptft resume" not in error
    cures = [line.split("gptft compare")[-1].split() for line in error.splitlines()[1:]]
    again = ["--keep-models", "--overwrite", "--only", "lambda-0-seed-0"]
    assert cures[0][-4:] == again
    capsys.readouterr()
    assert main([*words, "--only", "lambda-0-seed-0", "--keep-models"]) == 0
    assert "without keeping its model; add --overwrite" in capsys.readouterr().out
    assert main([*words, *again]) == 0
    assert main(["evaluate", str(cell)]) == 0
    files.remove(cell / "model")
    assert main(cures[1][cures[1].index("train") :]) == 0
    assert main(["evaluate", str(cell)]) == 0


def test_nothing_is_asked_and_nothing_has_a_rate_of_its_own_unless_wanted(words, capsys):
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
        (["--no-shots"], "--shots and --no-shots exclude each other"),
        (["--list", "--overwrite"], "--overwrite and --list exclude each other"),
        (["--list", "--only", "none"], "no cell 'none' in this study"),
        (["--seed", "3"], "no such option: --seed"),
        (["--set", "train.seed=3"], "several seeds Use --seeds 3."),
        (["--scratch", "foo"], "--scratch foo is not key=value Write it as --scratch train."),
        (["--scratch", "train.seed=3"], "train.seed cannot be set for training from scratch only"),
        (["--scratch", "train.rate=1"], "unknown key 'train.rate'"),
    ],
)
def test_a_mistake_is_told_with_exit_code_2(words, done, capsys, more, message):
    assert main([*words, *more, "--no-plot"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


# -- the figure ------------------------------------------------------------------------------------


def make_row(name: str, kind: str, labels: int, *values: float, fraction: float = 1.0) -> Row:
    summary = ScoreSummary(
        sorted(values)[len(values) // 2], min(values), max(values), "seeds", values
    )
    coefficient = 0.5 if kind in ("finetune", "scratch") else None
    seeds = tuple(range(len(values)))
    shots = labels if kind == "prompt" else 0
    return Row(
        name, kind, coefficient, fraction, labels, shots, seeds, {"accuracy": summary}, (), 1.0
    )


TABLE = Table(
    "[bold]Mine.[/bold] What is it?",
    "tiny",
    ("accuracy",),
    (
        make_row("majority", "majority", 200, 0.5),
        make_row("0-shot", "prompt", 0, 0.52),
        make_row("4-shot", "prompt", 4, 0.5, 0.55, 0.6),
        make_row("from scratch", "scratch", 200, 0.5, 0.6, 0.55),
        make_row("fine-tuned", "finetune", 200, 0.8, 0.7, 0.75),
        make_row("fine-tuned, 5 %", "finetune", 10, 0.6, 0.5, 0.55, fraction=0.05),
    ),
)


def test_the_figure_is_a_picture_and_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    assert TABLE.has_curve
    for name in ("one.png", "two.png"):
        curve.draw_curve(TABLE, tmp_path / name)
    content = (tmp_path / "one.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content == (tmp_path / "two.png").read_bytes()


def test_the_curve_has_a_point_for_every_number_of_labels():
    (tuned, few) = curve.select_series(TABLE)
    assert (tuned.name, [row.labels for row in tuned.rows]) == ("fine-tuned, λ = 0.5", [10, 200])
    assert (few.name, [row.labels for row in few.rows]) == ("few-shot", [4])


def test_without_matplotlib_there_is_one_clear_error(monkeypatch, words, capsys, tmp_path):
    monkeypatch.setattr(curve, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="figures need matplotlib"):
        curve.draw_curve(TABLE, tmp_path / "x.png")
    assert main([*words[:-1], str(tmp_path / "study"), "--fractions", "0.5"]) == 2
    assert "pip install 'gptft[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_solved_examples_that_did_not_fit_are_told():
    row = make_row("32-shot", "prompt", 32, 0.5)._replace(labels=3.42)
    assert format_row(row, ["accuracy"])[1] == "3.4 of 32"
    assert format_row(row._replace(labels=32), ["accuracy"])[1] == "32"
    assert format_row(make_row("tuned", "finetune", 67349, 0.5), ["accuracy"])[1] == "67,349"


def test_texts_of_a_table_are_shown_as_they_are():
    out = Console(width=120, record=True, markup=False)
    out.print(make_comparison_table(TABLE))
    text = out.export_text()
    assert "fine-tuned, 5 %" in text
    assert "0.5500   0.5000 to 0.6000" in text
