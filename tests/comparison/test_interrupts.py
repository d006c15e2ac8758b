"""A study that is stopped: between two cells, and where a signal comes too late for one."""

import os
import signal

import pytest

import finetune.comparison.study
from finetune.comparison import CellFinished, CellStarted, Design, events
from finetune.training.events import Interrupted
from finetune.training.recorder import RunRecorder
from tests.comparison.test_study import asked
from tests.support import jobs

pytestmark = pytest.mark.usefixtures("no_flush")
DESIGN = Design(seeds=(0,), shots=(0,), fractions=(1,))


@pytest.fixture
def recipe(bases, tmp_path):
    return asked("entailment", bases("gpt2"), tmp_path / "data")


def follow(recipe, folder, done, begun) -> None:
    """Notes the names of cells as they begin and end."""
    for event in events(recipe, folder, DESIGN, only=("majority", "lambda-*")):
        if isinstance(event, CellStarted):
            begun.append(event.cell.name)
        if isinstance(event, CellFinished) and not event.read:
            done.append(event.found.cell.name)


def test_a_signal_as_a_cell_ends_is_for_the_study(recipe, tmp_path, monkeypatch) -> None:
    """The cell is done; the same command goes on with the next one."""
    write, done, begun = RunRecorder.write_result, [], []

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "write_result", write_and_stop)
        with pytest.raises(Interrupted) as stop:
            follow(recipe, tmp_path / "cells", done, begun)
    assert (stop.value.exit_code, stop.value.update) == (143, None)
    assert stop.value.folder.name == done[-1] == begun[-1]
    assert begun == ["majority", "lambda-0-seed-0"]
    before, done[:] = len(done), []
    follow(recipe, tmp_path / "cells", done, [])
    assert before + len(done) == 3
    assert jobs.result(tmp_path / "cells" / "lambda-0.5-seed-0")["scores"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_cell_that_saves_nothing(number, code, recipe, tmp_path, monkeypatch):
    done, begun = [], []

    def stop_within(*arguments):
        os.kill(os.getpid(), number)
        raise AssertionError("not stopped at once")

    with monkeypatch.context() as patch:
        patch.setattr(finetune.comparison.study, "predict_majority", stop_within)
        with pytest.raises(Interrupted) as stop:
            follow(recipe, tmp_path / "cells", done, begun)
    assert (stop.value.exit_code, stop.value.folder.name) == (code, "majority")
    assert (begun, done) == (["majority"], [])
