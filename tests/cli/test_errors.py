"""What becomes of errors: one message, its cure, and an exit code; never a bare traceback."""

import json

import pytest

from finetune.cli import errors as faults
from finetune.cli import main
from finetune.cli.commands import version as version_command
from task_formats import RowError, UsageError


@pytest.fixture
def failing(monkeypatch):
    """A verb that raises what it is given, in the place of `gptft version`."""

    def fail(error):
        def start(*_, **__):
            raise error

        monkeypatch.setattr(version_command, "print_line", start)
        return main(["version"])

    return fail


def test_a_mistake_is_one_message_with_its_cure(failing, capsys):
    error = UsageError("column 'a[b]' is [red]empty[/red]", where="x.csv, line 3", cure="Fill it.")
    assert failing(error) == 2
    assert capsys.readouterr() == (
        "",
        "error: x.csv, line 3: column 'a[b]' is [red]empty[/red]\n  Fill it.\n",
    )


def test_a_long_message_is_not_broken_into_lines(failing, capsys):
    assert failing(RowError("a path " + "long/" * 200)) == 2
    assert "long/" * 200 in capsys.readouterr().err


def test_a_fault_of_ours_names_the_way_to_its_traceback(failing, capsys):
    assert failing(ZeroDivisionError("division by zero\nand more")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ZeroDivisionError: division by zero\n")
    assert "GPTFT_TRACEBACK=1" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("error", [UsageError("a mistake"), ZeroDivisionError("ours")])
def test_the_traceback_comes_when_it_is_asked_for(failing, capsys, monkeypatch, error):
    monkeypatch.setenv(faults.TRACEBACK, "1")
    failing(error)
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last)")
    assert "in start" in text


def test_ctrl_c_gives_130_in_one_line(failing, capsys):
    assert failing(KeyboardInterrupt()) == 130
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_file_that_the_system_refuses_is_a_mistake(failing, capsys):
    assert failing(PermissionError(13, "Permission denied", "/etc/shadow")) == 2
    assert capsys.readouterr().err.startswith("error: /etc/shadow: Permission denied\n")


ON_A_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
)


@pytest.mark.parametrize(
    "error",
    [
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
        RuntimeError(ON_A_CPU),
        MemoryError(),
    ],
)
def test_out_of_memory_has_a_cure(failing, capsys, error):
    assert failing(error) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory\n")
    assert "train.tokens_per_forward=4096" in told
    error.add_note("--resume --set train.tokens_per_forward=77")
    assert failing(error) == 1
    told = capsys.readouterr().err
    assert "tokens_per_forward=77" in told
    assert "4096" not in told


def test_a_closed_pipe_is_no_message(failing, capsys):
    assert failing(BrokenPipeError(32, "Broken pipe")) == 1
    assert capsys.readouterr().err == ""


def test_a_process_of_several_leaves_its_fault_in_a_file(failing, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(faults.ERROR_FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    assert failing(UsageError("wrong", cure="Mend it.")) == 2
    assert capsys.readouterr() == ("", "")
    left = json.loads((tmp_path / "3.json").read_text())
    assert (left["message"], left["cure"], left["exit_code"]) == ("wrong", "Mend it.", 2)
    assert faults.ErrorReport(**left).time > 0


def test_of_processes_that_others_started_the_first_speaks_at_once(failing, capsys, monkeypatch):
    waits = []
    monkeypatch.setattr(faults.time, "sleep", waits.append)
    monkeypatch.setenv("RANK", "0")
    failing(UsageError("wrong"))
    assert (waits, capsys.readouterr().err) == ([], "error: wrong\n")
    monkeypatch.setenv("RANK", "1")
    failing(UsageError("wrong"))
    assert (len(waits), capsys.readouterr().err) == (1, "error: process 1: wrong\n")
