"""The verbs that need no model: help, tasks, show, schema, new, version."""

import json
import os
import subprocess
import sys

import pytest

from finetune.cli import main
from finetune.recipe import loading as recipe_files

VERBS = (
    "train", "resume", "evaluate", "predict", "tasks", "show", "preview", "new", "schema",
    "version",
)  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    code = main(list(words))
    out, error = capsys.readouterr()
    assert (code, error) == (0, "")
    return out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(words, capsys):
    text = run(capsys, *words)
    for verb in VERBS:
        assert f" {verb} " in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = run(capsys, verb, "--help")
    assert "Example: " in text
    assert f"gptft {verb}" in text.partition("Example: ")[2]


@pytest.mark.parametrize("words", [["--help"], ["tasks"], ["show", "rte"], ["train", "--help"]])
def test_light_verbs_load_no_heavy_package(words):
    heavy = {"torch", "transformers", "datasets", "sklearn", "accelerate", "pyarrow", "numpy"}
    code = (
        "import sys; from finetune.cli import main; code = main(sys.argv[1:]); "
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"
    assert done.stdout


def test_python_dash_m_finetune_is_the_command(here, root):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "show", "rtee"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown task 'rtee'\n  Did you mean 'rte'?")


@pytest.mark.parametrize("columns", ["50", "80", "160"])
def test_tasks_lists_every_recipe_at_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    text = run(capsys, "tasks")
    firsts = [line.split()[0] for line in text.splitlines() if line.split()]
    assert set(recipe_files.shipped_recipes()) <= set(firsts)
    assert max(map(len, text.splitlines()[:-1])) <= int(columns)


def test_show_writes_a_recipe_that_loads_back_with_its_overrides(here, capsys):
    text = run(capsys, "show", "rte", "--epochs", "5", "--set", "about=[bold]mine[/bold] \\[x]")
    recipe = recipe_files.parse_recipe(text)
    assert (recipe.train.epochs, recipe.about) == (5, "[bold]mine[/bold] \\[x]")
    assert recipe.task == recipe_files.load_recipe("rte").task


def test_schema_is_that_of_a_recipe(here, capsys):
    printed = run(capsys, "schema")
    assert json.loads(printed) == recipe_files.recipe_schema()
    assert "wrote" in run(capsys, "schema", "-o", "recipe.json").lower()
    assert (here / "recipe.json").read_text() == printed
    assert main(["schema", "-o", "recipe.json"]) == 2
    assert "already exists" in capsys.readouterr().err


def test_version_names_what_it_stands_on(capsys):
    text = run(capsys, "version")
    assert text == run(capsys, "--version")
    for name in ("gptft", "Python", "torch", "transformers"):
        assert f"{name} " in text
