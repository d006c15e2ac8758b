"""Several processes as one job: whose error is told, and that none outlives the others."""

import json
import os
import signal
import subprocess
import sys

import pytest

from finetune.checkpointing.run_folder import read_result
from finetune.cli import launcher as processes
from finetune.cli import main
from finetune.cli.errors import ErrorReport
from finetune.cli.launcher import run_processes
from finetune.recipe.loading import dump_recipe
from tests.support import families
from tests.support.jobs import recipe as job


@pytest.fixture
def scripted(monkeypatch):
    """Runs a Python text in the place of gptft, with RANK and all, in two processes."""

    def run(script):
        popen = subprocess.Popen

        def start(command, env):
            return popen([sys.executable, "-c", script], env=env)

        with monkeypatch.context() as patch:
            patch.setattr(processes.subprocess, "Popen", start)
            return run_processes([], 2)

    return run


FAULT = """
import json, os, sys, time
rank = int(os.environ["RANK"])
def fail(what, code=1):
    fault = dict(message=what, cure="", exit_code=code, traceback="", time=time.time())
    with open(os.path.join(os.environ["GPTFT_ERROR_FOLDER"], f"{rank}.json"), "w") as file:
        json.dump(fault, file)
    sys.exit(code)
"""


def test_they_are_told_who_they_are(scripted, tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    script = f"""
import json, os
values = {{name: os.environ[name] for name in {names}}}
open({str(tmp_path)!r} + "/" + values["RANK"], "w").write(json.dumps(values))
"""
    assert scripted(script) == 0
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert (first["RANK"], first["LOCAL_RANK"]) == ("0", "0")
    assert (second["RANK"], second["LOCAL_RANK"]) == ("1", "1")
    assert first["WORLD_SIZE"] == first["LOCAL_WORLD_SIZE"] == "2"
    assert {key: first[key] for key in names[2:]} == {key: second[key] for key in names[2:]}


def test_the_error_that_came_first_is_told_alone(scripted, capfd):
    script = FAULT + "\nif rank == 0: time.sleep(0.3); fail('peer is gone')\nfail('the cause')"
    assert scripted(script) == 1
    assert capfd.readouterr().err == "error: process 1: the cause\n"


def test_a_mistake_of_all_is_told_once_with_exit_code_2(scripted, capfd):
    assert scripted(FAULT + "fail('no such column', 2)") == 2
    assert capfd.readouterr().err == "error: no such column\n"


def test_one_that_is_killed_ends_the_other_and_is_named(scripted, capfd, tmp_path):
    script = f"""
import os, signal, time
open({str(tmp_path)!r} + "/" + os.environ["RANK"], "w").write(str(os.getpid()))
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""
    assert scripted(script) == 1
    assert capfd.readouterr().err.startswith("error: process 1 was killed by SIGKILL\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0").read_text()), 0)


def test_an_exit_code_without_a_word_is_passed_on(scripted, capfd):
    assert scripted("raise SystemExit(130)") == 130
    assert capfd.readouterr().err == ""


def test_signals_reach_all_of_them(scripted, tmp_path):
    script = f"""
import os, pathlib, signal, sys, time
here = pathlib.Path({str(tmp_path)!r})
def stop(number, frame):
    (here / ("stopped" + os.environ["RANK"])).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(here / ("ready" + os.environ["RANK"])).touch()
if os.environ["RANK"] == "0":
    while not (here / "ready1").exists():
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(600)
"""
    before = signal.getsignal(signal.SIGTERM)
    assert scripted(script) == 143
    assert {path.name for path in tmp_path.glob("stopped*")} == {"stopped0", "stopped1"}
    assert signal.getsignal(signal.SIGTERM) is before


STOP = """
import os, pathlib, signal, sys, time
here = pathlib.Path({here!r})
rank = os.environ["RANK"]
def stop(number, frame):
    if rank == "0":
        time.sleep({seconds})
        (here / "saved").touch()
    sys.exit({code})
signal.signal(signal.{number}, stop)
(here / ("ready" + rank)).touch()
while not (here / "ready0").exists() or not (here / "ready1").exists():
    time.sleep(0.01)
if rank == "0":
    os.kill(os.getppid(), signal.{number})
time.sleep(600)
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_who_was_asked_to_stop_has_time_to_save(number, code, scripted, tmp_path, monkeypatch):
    """Far longer than the others of one that failed have to say so."""
    monkeypatch.setattr(processes, "_FAILURE_SECONDS", 0.1)
    words = {"here": str(tmp_path), "seconds": 2, "number": number, "code": code}
    assert scripted(STOP.format(**words)) == code
    assert (tmp_path / "saved").exists()


def test_who_does_not_end_after_a_stop_is_ended(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_STOP_SECONDS", 0.3)
    words = {"here": str(tmp_path), "seconds": 600, "number": "SIGTERM", "code": 143}
    assert scripted(STOP.format(**words)) == 143
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_one_that_a_signal_ends_before_it_listens_has_stopped(number, code, scripted, capfd):
    """While Python imports, or when all is done; it is no crash, and needs no advice."""
    script = f"""
import os, signal, time
signal.signal(signal.{number}, signal.SIG_DFL)
if os.environ["RANK"] == "0":
    time.sleep(0.3)
    os.kill(os.getppid(), signal.{number})
time.sleep(600)
"""
    assert scripted(script) == code
    assert capfd.readouterr().err == ""


def test_a_state_that_could_not_be_saved_is_told_after_a_stop(capfd):
    errors = {0: ErrorReport("the disk is full", "", 2)}
    assert processes._finish([2, -signal.SIGTERM], errors, {signal.SIGTERM}) == 2
    assert capfd.readouterr().err == "error: the disk is full\n"


def test_a_crash_is_told_without_advice_about_memory(scripted, capfd):
    assert scripted("import os; os.abort()") == 1
    assert capfd.readouterr().err == "error: process 0 was killed by SIGABRT\n"


def test_a_command_in_two_processes_prints_once(capfd):
    assert run_processes(["show", "rte"], 2) == 0
    assert capfd.readouterr().out.count("format: entailment") == 1
    assert run_processes(["show", "rtee"], 2) == 2
    assert capfd.readouterr().err.count("error: unknown task 'rtee'\n") == 1


def test_a_mistake_is_found_before_any_process_starts(monkeypatch, capsys):
    monkeypatch.setattr(processes, "run_processes", None)
    assert main(["train", "--task", "rtee", "--num-processes", "2"]) == 2
    assert "unknown task" in capsys.readouterr().err


def test_the_latest_error_loses_whatever_its_rank(capfd):
    errors = {n: ErrorReport(f"of {n}", "", 1, "", 2.0 - (n == 1)) for n in range(3)}
    assert processes._finish([1, 1, 1], errors, set()) == 1
    assert capfd.readouterr().err == "error: process 1: of 1\n"


@pytest.mark.slow
def test_two_processes_train_to_the_scores_of_one(tmp_path, capfd):
    base = families.make("gpt2", tmp_path / "base")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump_recipe(job("entailment", base, tmp_path / "rows")))
    scores = []
    for count in ("1", "2"):
        run = tmp_path / count
        words = ["train", "--task", str(recipe), "-o", str(run), "--num-processes", count]
        assert main(words) == 0
        assert ("2 processes" in capfd.readouterr().out) == (count == "2")
        [found] = read_result(run)["scores"].values()
        scores.append(found)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
