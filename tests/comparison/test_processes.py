"""Studies in two processes, and studies that a signal stops."""

import os
import signal
from pathlib import Path

import pytest

import finetune.comparison.study
from finetune.comparison import CellFinished, CellStarted, Design, compare, events
from finetune.recipe.schema import Recipe
from finetune.training.events import Interrupted, Started
from finetune.training.loop import Step
from finetune.training.recorder import RunRecorder
from tests.comparison.test_study import make_recipe
from tests.support import jobs
from tests.support.processes import run_processes

SMALL = Design(seeds=(0,), shots=(1,))
ONLY = ("majority", "ask-*", "lambda-0.5-*")
CELL = "lambda-0.5-seed-0"


@pytest.fixture
def recipe(bases, tmp_path):
    return make_recipe(bases("gpt2"), tmp_path / "data")


def compare_here(recipe: Recipe, folder: Path) -> int:
    compare(recipe, folder, SMALL, only=ONLY)
    return 0


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(bases, tmp_path):
    recipe = make_recipe(bases("gpt2"), tmp_path / "data", batch_size=7, epsilon=1e-3)
    run_processes(2, compare_here, recipe, tmp_path / "two", output=tmp_path / "two")
    tables = [compare(recipe, tmp_path / run, SMALL, only=ONLY) for run in ("one", "two")]
    one, two = ([row._replace(seconds=0) for row in table.rows] for table in tables)
    assert one == two


def stop_in_training(recipe: Recipe, folder: Path) -> None:
    """Sends a signal after the first update of a trained cell."""
    for event in events(recipe, folder, SMALL, only=ONLY):
        if isinstance(event, Step):
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_cell_resumes_from_its_checkpoint(bases, tmp_path):
    recipe = make_recipe(bases("gpt2"), tmp_path / "data")
    with pytest.raises(Interrupted) as stop:
        stop_in_training(recipe, tmp_path / "run")
    assert stop.value.exit_code == 143
    resumed = list(events(recipe, tmp_path / "run", SMALL, only=ONLY))
    assert [event.done for event in resumed if isinstance(event, Started)] == [1]
    compare(recipe, tmp_path / "whole", SMALL, only=ONLY)
    assert jobs.result(tmp_path / "run" / CELL) == jobs.result(tmp_path / "whole" / CELL)
    assert jobs.log(tmp_path / "run" / CELL) == jobs.log(tmp_path / "whole" / CELL)


def follow(recipe, folder, cells: dict[str, bool]) -> None:
    """Sets the cells that start to False, and to True when they finish."""
    design = Design(seeds=(0,), shots=(0,), fractions=(1,))
    for event in events(recipe, folder, design, only=("majority", "lambda-*")):
        if isinstance(event, CellStarted):
            cells[event.cell.name] = False
        if isinstance(event, CellFinished) and not event.reused:
            cells[event.result.cell.name] = True


def test_a_signal_at_the_end_of_a_cell_stops_the_study(recipe, tmp_path, monkeypatch) -> None:
    """The cell is complete, and the same call continues with the next one."""
    write, cells, again = RunRecorder.write_result, {}, {}

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "write_result", write_and_stop)
        with pytest.raises(Interrupted) as stop:
            follow(recipe, tmp_path / "cells", cells)
    assert (stop.value.exit_code, stop.value.update) == (143, None)
    assert stop.value.folder.name == "lambda-0-seed-0"
    assert cells == {"majority": True, "lambda-0-seed-0": True}
    follow(recipe, tmp_path / "cells", again)
    assert again == {CELL: True}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_cell_without_checkpoints_at_once(
    number, code, recipe, tmp_path, monkeypatch
):
    def send_signal(*arguments):
        os.kill(os.getpid(), number)
        raise AssertionError("not stopped at once")

    cells = {}
    monkeypatch.setattr(finetune.comparison.study, "predict_majority", send_signal)
    with pytest.raises(Interrupted) as stop:
        follow(recipe, tmp_path / "cells", cells)
    assert (stop.value.exit_code, stop.value.folder.name) == (code, "majority")
    assert cells == {"majority": False}
