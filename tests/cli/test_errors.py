"""Errors: one message, its cure and an exit code; a traceback only on request."""

import json

import pytest

from finetune.cli import errors, main
from finetune.cli.commands import version
from task_formats import RowError, UsageError


@pytest.fixture
def failing(monkeypatch):
    """Makes `gptft version` raise an error; returns the exit code."""

    def run(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(version, "print_line", fail)
        return main(["version"])

    return run


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (
            UsageError("column 'a[b]' is [red]empty[/red]", where="x.csv, line 3", cure="Fill it."),
            2,
            "error: x.csv, line 3: column 'a[b]' is [red]empty[/red]\n  Fill it.\n",
        ),
        (RowError("a path " + "long/" * 200), 2, "error: a path " + "long/" * 200),
        (PermissionError(13, "Denied", "/etc/shadow"), 2, "error: /etc/shadow: Denied\n  Check"),
        (ZeroDivisionError("by zero\nmore"), 1, "error: ZeroDivisionError: by zero\n  This is"),
        (MemoryError(), 1, "error: out of memory\n  Process fewer tokens"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory\n"),
        (type("OutOfMemoryError", (RuntimeError,), {})(), 1, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_message_with_its_cure(failing, capsys, error, code, start):
    assert failing(error) == code
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith(start)
    assert "Traceback" not in message
    assert message.count("error: ") == (1 if start else 0)


@pytest.mark.parametrize("error", [UsageError("a mistake"), ZeroDivisionError("a bug")])
def test_the_traceback_is_printed_on_request(failing, capsys, monkeypatch, error):
    monkeypatch.setenv(errors.TRACEBACK, "1")
    failing(error)
    message = capsys.readouterr().err
    assert message.startswith("Traceback (most recent call last)")
    assert "in fail" in message


def test_notes_of_an_error_replace_the_general_cure_for_memory(failing, capsys):
    error = MemoryError()
    error.add_note("--resume --set train.tokens_per_forward=77")
    assert failing(error) == 1
    message = capsys.readouterr().err
    assert "tokens_per_forward=77" in message
    assert "4096" not in message


def test_a_launched_process_writes_its_error_to_a_file(failing, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(errors.ERROR_FOLDER, str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    assert failing(UsageError("wrong", cure="Correct it.")) == 2
    assert capsys.readouterr() == ("", "")
    report = errors.ErrorReport(**json.loads((tmp_path / "3.json").read_text()))
    assert (report.message, report.cure, report.exit_code) == ("wrong", "Correct it.", 2)
    assert report.time > 0


def test_with_another_launcher_the_first_process_reports_first(failing, capsys, monkeypatch):
    waits = []
    monkeypatch.setattr(errors.time, "sleep", waits.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        failing(ValueError("wrong"))
        assert len(waits) == rank
        assert capsys.readouterr().err.startswith(f"error: process {rank}: ValueError: wrong\n")
