"""The application: its commands, their help, and what they import."""

import os
import subprocess
import sys

import pytest

from finetune.cli import main
from finetune.cli.app import COMMANDS
from tests.conftest import ROOT

NAMES = [command.function.__name__.replace("_", "-") for command in COMMANDS]


def run(capsys, *words):
    code = main(list(words))
    out, error = capsys.readouterr()
    assert (code, error) == (0, "")
    return out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_but_the_alias(words, capsys):
    text = run(capsys, *words)
    assert [name for name in NAMES if f" {name} " not in text] == []
    assert " ask " not in text


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = run(capsys, name, "--help")
    assert f"gptft {name}" in text.partition("Example: ")[2]


LIGHT = """
import sys
from finetune.cli import main
heavy = {"torch", "transformers", "datasets", "sklearn", "accelerate", "pyarrow", "numpy"}
for command in sys.argv[1:]:
    assert main(command.split()) == 0
    print(command, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


def test_light_commands_import_no_heavy_package():
    commands = ["--help", "train --help", "tasks", "show rte"]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *commands], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == [f"{command} []" for command in commands]


def test_python_dash_m_finetune_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "show", "rtee"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown task 'rtee'\n  Did you mean 'rte'?")


def test_version_names_the_dependencies(capsys):
    text = run(capsys, "version")
    assert text == run(capsys, "--version")
    for name in ("gptft", "Python", "torch", "transformers"):
        assert f"{name} " in text
