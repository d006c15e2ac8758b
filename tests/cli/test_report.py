"""`gptft report`."""

import re
import shutil
import sys
from html import unescape

import pytest

from finetune.cli import main
from tests.cli.conftest import read_scores
from tests.support import jobs

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current folder is not that of the run."""
    monkeypatch.chdir(tmp_path)


def text_of(path) -> str:
    """The text of a page, with tags as blanks."""
    html = path.read_text(encoding="utf-8")
    plain = unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL))
    return " ".join(plain.split())


def test_the_scores_are_those_of_evaluate(trained, tmp_path, capsys):
    words = [str(trained.run), "--split", "more"]
    assert main(["evaluate", *words]) == 0
    [(split, scores)] = read_scores(capsys.readouterr().out).items()
    assert split == "more"
    assert main(["report", *words, "-o", "page.html", "--rows", "3", "--limit", "99"]) == 0
    assert re.match(r"Wrote page.html \(\d+ kB\)\.", capsys.readouterr().out)
    text = text_of(tmp_path / "page.html")
    for metric, value in scores.items():
        assert f" {metric} {value} ".replace("-", "−") in text
    assert "12 labelled rows" in text
    # The folder of the recipe's files, and a row of the page, by file and line.
    assert re.search(r"more\.jsonl, line \d+ label", text)
    assert f"gptft report {trained.run} --split more -o page.html --rows 3 --limit 99" in text
    # What repeats the numbers.
    assert re.search(r"gptft evaluate \S+ --split \S+more\.jsonl --limit 99 ", text)


def test_a_run_is_compared_with_its_copy(trained, tmp_path, capsys):
    shutil.copytree(trained.run, tmp_path / "copy")
    assert main(["report", str(trained.run), "copy", "-o", "both.html"]) == 0
    text = text_of(tmp_path / "both.html")
    assert "Each run against mine, on the 12 rows that all runs have" in text
    metric = {"similarity": "pearson"}.get(trained.kind, "accuracy")
    assert f"copy {metric} 0.0000 0.0000 to 0.0000 1.000" in text


def test_a_run_that_is_not_finished_is_said_to_be_so(bases, tmp_path, capsys):
    jobs.stop_at(jobs.recipe("entailment", bases("gpt2"), tmp_path), tmp_path / "run", 4)
    assert main(["report", "run", "-o", "page.html"]) == 0
    assert "note: the run is not finished (gptft resume run)" in capsys.readouterr().err
    assert "run is not finished: these are the numbers of its best" in text_of(
        tmp_path / "page.html"
    )


def test_runs_of_different_tasks_are_refused_before_they_are_evaluated(
    trained, tmp_path, capsys, monkeypatch
):
    shutil.copytree(trained.run, tmp_path / "other", ignore=shutil.ignore_patterns("model"))
    recipe = tmp_path / "other" / "recipe.yaml"
    metric = {"similarity": "pearson"}.get(trained.kind, "accuracy")
    other = {"similarity": "spearman"}.get(trained.kind, "macro_f1")
    recipe.write_text(recipe.read_text().replace(metric, other))
    monkeypatch.setattr("finetune.cli.commands.report.load_predictor", None)
    assert main(["report", str(trained.run), "other"]) == 2
    assert "have different labels or metrics" in capsys.readouterr().err


def test_a_missing_library_is_found_before_the_model_is_loaded(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "no-such-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a report needs matplotlib, which is not installed")
    assert "pip install 'gptft[plots]'" in error


@pytest.mark.parametrize(("output", "what"), [("file/page.html", "File exists"), (".", "folder")])
def test_a_page_that_cannot_be_written_is_refused_before_a_run_is_evaluated(
    output, what, trained, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("finetune.cli.commands.report.load_predictor", None)
    assert main(["report", str(trained.run), "-o", output]) == 2
    assert what in capsys.readouterr().err


def test_a_misspelt_run_leaves_no_folder(tmp_path, capsys):
    assert main(["report", "no-run", "-o", "pages/page.html"]) == 2
    assert "no-run" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()
