"""Errors: one message, its cure and an exit code; a traceback only on request."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text

from finetune.cli import errors, main
from finetune.cli.commands import version
from finetune.cli.console import console, make_table
from finetune.data import open_file
from task_formats import RowError, UsageError
from tests.conftest import ROOT


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


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("runs/\udcff.csv".encode, r"error: 'runs/\udcff.csv' is not valid UTF-8"),
        (lambda: Path("a\0b").stat(), "error: a path contains a NUL character"),
        (lambda: raise_error(OSError(12, "Cannot allocate memory")), "error: out of memory"),
        (lambda: raise_error(RuntimeError("could not create a primitive")), "error: out of memory"),
    ],
    ids=range(4),
)
def test_errors_of_the_system_are_explained(failing, capsys, error, message):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        error()
    assert failing(caught.value) == (1 if "memory" in message else 2)
    text = capsys.readouterr().err
    assert text.startswith(message)
    assert "bug" not in text


def raise_error(error):
    raise error


def run_gptft(shell, **environment):
    """Exit code and standard error of `gptft ARGUMENTS`, with redirections of the shell."""
    command = f'exec "{sys.executable}" -m finetune {shell}'
    variables = {**os.environ, **environment}
    done = subprocess.run(
        command, shell=True, capture_output=True, env=variables, cwd=ROOT, check=False
    )
    return done.returncode, done.stderr.decode()


def test_a_closed_standard_stream_is_one_message():
    assert run_gptft("tasks >&-") == (
        2,
        "error: standard output is closed\n  Redirect it to a file or /dev/null.\n",
    )
    assert run_gptft("tasks 2>&- >/dev/null") == (0, "")
    assert run_gptft("schema -o '' 2>&- >&-") == (2, "")


def test_closed_standard_input_is_one_message(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        next(open_file("-", format="csv").read())


def test_files_of_a_run_do_not_take_the_numbers_of_closed_streams():
    """What a library writes to standard error would go into them."""
    code = "import os; from finetune.cli import main; main(['version'])"
    code += "; assert os.open('pyproject.toml', os.O_RDONLY) > 2"
    command = f'exec "{sys.executable}" -c "{code}" <&- 2>&-'
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, cwd=ROOT, check=False)
    assert done.returncode == 0


def test_control_characters_are_shown_escaped(failing, capsys):
    assert failing(UsageError("column '\x1b[2J\x1b]0;title\x07\r' is missing", cure="a\x9bb")) == 2
    message = capsys.readouterr().err
    assert message.startswith(r"error: column '\x1b[2J\x1b]0;title\x07\x0d' is missing")
    assert r"a\x9bb" in message
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", message)


def test_a_console_escapes_every_text(capsys):
    console().print("a\x1b[31mb", Text("c\x1b[2Jd"))
    console().print(make_table(["x"], [["e\x1b[1mf"]]))
    console().out("g\x1bh")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    for text in (r"a\x1b[31mb", r"c\x1b[2Jd", r"e\x1b[1mf", r"g\x1bh"):
        assert text in out


@pytest.mark.parametrize(
    ("written", "meant"), [*errors.OTHER_NAMES.items(), ("--num_train_epochs", "--epochs")]
)
def test_names_of_other_tools_are_answered_with_ours(written, meant, capsys):
    assert main(["train", "--task", "demo", written, "1"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"no such option: {written} (Possible options: {meant})" in message
    assert main(["train", "--help"]) == 0
    assert meant in capsys.readouterr().out


def test_a_missing_run_is_reported_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from finetune.cli import main; "
        f"code = main(['evaluate', {str(tmp_path / 'nothere')!r}]); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "no such run directory" in done.stderr
