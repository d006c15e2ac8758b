"""--quiet, --verbose, and the completion of the shell."""

import logging

import pytest

from finetune.cli import main
from tests.support import jobs


@pytest.fixture
def words(bases, tmp_path) -> list[str]:
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, epochs=1)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    return ["train", "--task", str(tmp_path / "mine.yaml"), "-o", str(tmp_path / "run")]


def test_quiet_prints_the_result_only(words, capsys) -> None:
    assert main([*words, "--quiet"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert out.startswith("Trained 3 updates")
    assert "tokens/s" not in out
    # The next command is not quiet.
    assert main([*words, "--overwrite"]) == 0
    assert "epoch 1.00  loss" in capsys.readouterr().out


def test_verbose_logs_to_standard_error(words, capsys) -> None:
    assert main([*words, "--verbose"]) == 0
    out, error = capsys.readouterr()
    assert "Trained 3 updates" in out
    assert " DEBUG " in error
    assert " INFO " in error
    assert main([*words, "-v"]) == 2
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "holds a finished run" in error
    assert main(["show", "demo"]) == 0
    handlers = logging.getLogger("finetune").handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gptft tu", ["tune"]),
        ("gptft train --earl", ["--early-stopping"]),
        ("gptft train --task sst", ["sst2"]),
        ("gptft show rt", ["rte"]),
        ("gptft train --layout sep", ["separate"]),
    ],
)
def test_the_shell_completes_commands_options_and_tasks(line, expected, capsys, monkeypatch):
    monkeypatch.setenv("_GPTFT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert main([]) == 0
    assert capsys.readouterr().out.split() == expected


def test_the_script_for_the_shell_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("_GPTFT_COMPLETE", "source_bash")
    assert main([]) == 0
    assert "complete -o default -F _gptft_completion gptft" in capsys.readouterr().out
