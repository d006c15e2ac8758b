"""`--num-processes`: environment, signals, and the one error that is reported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.checkpointing.run_folder import read_result
from finetune.cli import launcher, main
from finetune.cli.errors import ErrorReport
from finetune.cli.launcher import run_processes
from finetune.distributed.setup import create_accelerator
from task_formats import UsageError
from tests.conftest import ROOT
from tests.support.jobs import recipe as job

STOPS = [("SIGTERM", 143), ("SIGINT", 130)]


@pytest.fixture
def run_scripts(monkeypatch):
    """Runs a Python script in two processes in place of gptft."""

    def run(script, **options):
        popen = subprocess.Popen

        def start(command, env):
            return popen([sys.executable, "-c", script], env=env)

        with monkeypatch.context() as patch:
            patch.setattr(launcher.subprocess, "Popen", start)
            return run_processes([], 2, **options)

    return run


FAIL = """
import json, os, sys, time
rank = int(os.environ["RANK"])
def fail(message, code=1):
    error = dict(message=message, cure="", exit_code=code, traceback="", time=time.time())
    with open(os.path.join(os.environ["GPTFT_ERROR_FOLDER"], f"{rank}.json"), "w") as file:
        json.dump(error, file)
    sys.exit(code)
"""


def test_processes_have_the_environment_of_torchrun(run_scripts, tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    script = f"""
import json, os
values = {{name: os.environ[name] for name in {names}}}
open({str(tmp_path)!r} + "/" + values["RANK"], "w").write(json.dumps(values))
"""
    assert run_scripts(script) == 0
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert (first["RANK"], first["LOCAL_RANK"]) == ("0", "0")
    assert (second["RANK"], second["LOCAL_RANK"]) == ("1", "1")
    assert first["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2"
    assert {key: first[key] for key in names[2:]} == {key: second[key] for key in names[2:]}


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        (
            FAIL + "\nif rank == 0: time.sleep(0.3); fail('peer is gone')\nfail('the cause')",
            1,
            "error: the cause\n",
        ),
        (FAIL + "fail('no such column', 2)", 2, "error: no such column\n"),
        ("raise SystemExit(130)", 130, ""),
        ("import os; os.abort()", 1, "error: process 0 was killed by SIGABRT\n"),
    ],
)
def test_the_earliest_error_is_reported_once(run_scripts, capfd, script, code, message):
    assert run_scripts(script) == code
    assert capfd.readouterr().err == message


def test_a_killed_process_ends_the_others_and_is_reported(
    run_scripts, capfd, tmp_path, monkeypatch
):
    monkeypatch.setattr(launcher, "_FAILURE_SECONDS", 0.2)
    script = f"""
import os, signal, time
file = {str(tmp_path / "0")!r}
if os.environ["RANK"] == "0":
    open(file, "w").write(str(os.getpid()))
    time.sleep(600)
while not (os.path.exists(file) and os.path.getsize(file)):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run_scripts(script) == 1
    message = capfd.readouterr().err
    assert message.startswith("error: process 1 was killed by SIGKILL\n  Out of memory?")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


def test_independent_processes_go_on_where_one_has_failed(run_scripts, monkeypatch, tmp_path):
    monkeypatch.setattr(launcher, "_FAILURE_SECONDS", 0.0)
    script = f"""
import os, sys, time
if os.environ["RANK"] == "1":
    sys.exit(2)
time.sleep(0.3)
open({str(tmp_path)!r} + "/done", "w").close()
"""
    for independent in (False, True):
        assert run_scripts(script, independent=independent) == 2
        assert (tmp_path / "done").exists() == independent


STOP = """
import os, pathlib, signal, sys, time
here = pathlib.Path({here!r})
rank = os.environ["RANK"]
def stop(number, frame):
    if rank == "0":
        time.sleep({seconds})
    (here / ("stopped" + rank)).touch()
    sys.exit({code})
signal.signal(signal.{number}, stop)
(here / ("ready" + rank)).touch()
while not (here / "ready0").exists() or not (here / "ready1").exists():
    time.sleep(0.01)
if rank == "0":
    os.kill(os.getppid(), signal.{number})
time.sleep(600)
"""


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_a_stop_is_forwarded_and_leaves_time_to_save(
    number, code, run_scripts, tmp_path, monkeypatch
):
    monkeypatch.setattr(launcher, "_FAILURE_SECONDS", 0.1)
    before = signal.getsignal(signal.Signals[number])
    values = {"here": str(tmp_path), "seconds": 0.5, "number": number, "code": code}
    assert run_scripts(STOP.format(**values)) == code
    assert {path.name for path in tmp_path.glob("stopped*")} == {"stopped0", "stopped1"}
    assert signal.getsignal(signal.Signals[number]) is before


def test_a_process_that_does_not_stop_is_killed(run_scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "_STOP_SECONDS", 0.3)
    values = {"here": str(tmp_path), "seconds": 600, "number": "SIGTERM", "code": 143}
    assert run_scripts(STOP.format(**values)) == 143
    assert not (tmp_path / "stopped0").exists()


def test_a_checkpoint_that_could_not_be_saved_is_reported_after_a_stop(capfd):
    errors = [ErrorReport("the disk is full", "", 2)]
    assert launcher._finish([2, -signal.SIGTERM], errors, {signal.SIGTERM}) == 2
    assert capfd.readouterr().err == "error: the disk is full\n"


def test_an_error_in_two_processes_is_printed_once(capfd):
    assert run_processes(["show", "rtee"], 2) == 2
    assert capfd.readouterr().err.count("error: unknown task 'rtee'\n") == 1


def test_two_processes_print_once_and_import_nothing_from_the_current_folder(
    tmp_path, monkeypatch, capfd
):
    for name in ("finetune", "typer", "yaml"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    assert run_processes(["show", "rte"], 2) == 0
    assert capfd.readouterr().out.count("format: entailment") == 1
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
def test_two_processes_train_to_the_scores_of_one(bases, tmp_path, capfd):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(job("entailment", bases("gpt2"), tmp_path / "rows").to_yaml())
    scores = []
    for count in ("1", "2"):
        run = tmp_path / count
        words = ["train", "--task", str(recipe), "-o", str(run), "--num-processes", count]
        assert main(words) == 0
        processes = "on cpu, 2 processes, " if count == "2" else "on cpu, "
        assert f"{processes}packed layout" in capfd.readouterr().out
        scores += read_result(run)["scores"].values()
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


LAUNCHED = """
import os, signal, sys, time
from finetune.cli.launcher import launch_processes
launch_processes(None, 2)
open(sys.argv[1] + "/" + os.environ["RANK"], "w").write(str(os.getpid()))
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys
from finetune.cli import launcher
popen = subprocess.Popen
script, folder = sys.argv[1:]
launcher.subprocess.Popen = lambda command, **options: popen(
    [sys.executable, "-c", script, folder], **options
)
launcher.run_processes([], 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a feature of Linux")
def test_processes_end_when_their_launcher_is_killed(tmp_path):
    command = [sys.executable, "-c", LAUNCHER, LAUNCHED, str(tmp_path)]
    launcher = subprocess.Popen(command, cwd=ROOT)
    files = [tmp_path / "0", tmp_path / "1"]
    assert wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    launcher.kill()
    launcher.wait()
    ranks = [int(file.read_text()) for file in files]
    ended = wait_until(lambda: not any(map(is_running, ranks)))
    for rank in filter(is_running, ranks):
        os.kill(rank, signal.SIGKILL)
    assert ended


def wait_until(condition, seconds=20):
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def is_running(process):
    """Whether a process exists and is not a zombie, which its new parent may not have collected."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x', not a number"),
        ({"RANK": "x"}, "RANK is 'x', not a number"),
    ],
)
def test_stray_variables_of_a_launcher_are_one_message(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message) as caught:
        create_accelerator("fp32", "cpu")
    assert "unset" in caught.value.cure


def test_a_stray_variable_does_not_keep_processes_from_being_launched(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(launcher, "run_processes", lambda words, number, **_: 40 + number)
    assert main(["train", "--task", "demo", "--base", "tiny", "--num-processes", "2"]) == 42
