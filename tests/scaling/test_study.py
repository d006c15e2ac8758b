"""A study of tiny decoders: run, interrupted, and put together."""

import csv
import os
import random
import signal
from pathlib import Path

import pytest

from finetune.checkpointing.run_folder import read_result
from finetune.scaling import study as study_module
from finetune.scaling.analysis import fit_points
from finetune.scaling.points import read_points
from finetune.scaling.study import (
    CellFailed,
    Study,
    TimeEstimate,
    choose_best,
    events,
    list_cells,
)
from finetune.scaling.study_plan import StudyPlan
from finetune.training.events import CellFinished, CellStarted, Started
from finetune.training.loop import Step
from task_formats import UsageError
from tests.pretraining.test_pretraining import BOOK
from tests.support import processes
from tests.support.jobs import log

SIZES = [{"layers": 1, "width": 16, "heads": 2}, {"layers": 2, "width": 16, "heads": 2}]


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> StudyPlan:
    folder = tmp_path_factory.mktemp("books")
    (folder / "train.txt").write_text(BOOK)
    (folder / "valid.txt").write_text(BOOK[3000:4500])
    return make_plan(folder)


def make_plan(folder: Path, **changes) -> StudyPlan:
    values = {
        "corpus": {"train": f"{folder}/train.txt", "evaluate": f"{folder}/valid.txt"},
        "tokenizer": {"vocabulary": 300},
        "shape": {"style": "gpt2", "positions": 24},
        "sizes": SIZES,
        "tokens": [400, 800],
        "learning_rate": {"value": 1e-2},
        "train": {
            "schedule": "wsd",
            "batch_size": 2,
            "warmup_updates": 2,
            "precision": "fp32",
            "checkpoint_updates": 2,
        },
    }
    return StudyPlan.model_validate({**values, **changes})


@pytest.fixture(scope="module", autouse=True)
def short_trials():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "TRIAL_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def finished(plan, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "study"
    for _ in events(plan, folder):
        pass
    return folder


def read_losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "losses.csv", newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def test_the_table_has_a_row_for_each_run_and_is_what_scale_fit_reads(finished, plan):
    rows = read_losses(finished)
    assert [row["cell"] for row in rows] == [
        "1x16-400-seed0",
        "1x16-800-seed0",
        "2x16-400-seed0",
        "2x16-800-seed0",
    ]
    for row in rows:
        result = read_result(finished / row["cell"])
        assert float(row["loss"]) == pytest.approx(result["scores"]["evaluate"]["loss"], abs=1e-6)
        cell = next(cell for cell in Study(plan, finished).cells if cell.name == row["cell"])
        assert int(row["N"]) == cell.count_parameters(300).blocks < int(row["N_total"])
        parts = sum(float(row[f"C_{part}"]) for part in ("layers", "attention", "output"))
        assert float(row["C"]) == pytest.approx(parts, rel=1e-5)
        updates = [event for event in log(finished / row["cell"]) if event["event"] == "train"]
        if updates[0]["update"] == 1:
            assert int(row["D"]) == sum(e["tokens"] - e["examples"] for e in updates)
    points = read_points(finished)
    assert points.columns == {"N": "N", "D": "D", "loss": "loss", "C": "C"}
    total = read_points(finished, {"N": "N_total", "C": "C_layers"})
    assert (total.values["N"] > points.values["N"]).all()
    assert (total.values["C"] < points.values["C"]).all()
    assert "L(D)" in fit_points(points, bootstrap=0).fits


def test_only_logs_results_and_the_table_stay(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "corpus",
        "text.json",
        "losses.csv",
        *(r["cell"] for r in read_losses(finished)),
    }
    for row in read_losses(finished):
        visible = {p.name for p in (finished / row["cell"]).iterdir() if p.name[0] != "."}
        assert visible == {"recipe.yaml", "metrics.jsonl", "result.json"}


def test_finished_runs_are_kept(finished, plan):
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("result.json")}
    seen = list(events(plan, finished))
    assert [type(event) for event in seen] == [CellFinished] * 4
    assert all(event.reused for event in seen)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("result.json")} == stamps


def test_a_run_that_goes_on_from_a_shorter_one_equals_one_from_the_start(finished, plan, tmp_path):
    name = "2x16-800-seed0"
    seen = list(events(plan, tmp_path, only=[name], keep_models=True))
    started = next(event for event in seen if isinstance(event, Started))
    assert started.done == 0
    alone, chained = log(tmp_path / name), log(finished / name)
    updates = [[e for e in events if e["event"] == "train"] for events in (alone, chained)]
    assert len(updates[1]) < len(updates[0])
    for one, other in zip(updates[0][-len(updates[1]) :], updates[1], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert read_result(tmp_path / name)["scores"] == read_result(finished / name)["scores"]
    assert [row["cell"] for row in read_losses(tmp_path)] == [name]


def test_folders_of_shards_are_put_together(finished, plan, tmp_path):
    parts = []
    for number in (1, 2):
        for event in events(plan, tmp_path / f"{number}", shard=(number, 2)):
            parts += [event.result.cell.name] if isinstance(event, CellFinished) else []
        assert len(read_losses(tmp_path / f"{number}")) == 2
    assert len(set(parts)) == 4
    for path in (tmp_path / "2").glob("*seed0"):
        path.rename(tmp_path / "1" / path.name)
    assert all(isinstance(event, CellFinished) for event in events(plan, tmp_path / "1"))
    assert read_losses(tmp_path / "1") == read_losses(finished)


def kill_at(plan: StudyPlan, folder: Path, kind: str, moment: int) -> int:
    """Runs a study and kills this process at an event or a file operation."""
    study_module.TRIAL_SECONDS = 0.01
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def ticking(function):
        def call(*arguments, **options):
            tick()
            return function(*arguments, **options)

        return call

    if kind == "file":
        for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
            setattr(os, name, ticking(getattr(os, name)))
    for _ in events(plan, folder):
        if kind == "event":
            tick()
    return 0


@pytest.mark.slow
def test_a_kill_at_any_time_loses_at_most_one_checkpoint_interval(finished, plan, tmp_path):
    """The next call goes on from the newest checkpoint, and the losses are as without kills."""
    draw = random.Random(3)
    for _ in range(6):
        kind = draw.choice(["event", "file"])
        child = processes.start(kill_at, plan, tmp_path, kind, draw.randint(1, 40))
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
    before = {cell.name for cell, result, _ in list_cells(plan, tmp_path) if result}
    checkpoints = {
        folder.name: max(int(path.name[-8:]) for path in folder.glob("checkpoints/update-*[0-9]"))
        for folder in tmp_path.glob("*seed0")
        if any(folder.glob("checkpoints/update-*[0-9]"))
    }
    done, name = {}, ""
    for event in events(plan, tmp_path):
        if isinstance(event, CellStarted):
            name = event.cell.name
        elif isinstance(event, Started):
            done[name] = event.done
    assert not before & done.keys()
    for cell, update in checkpoints.items():
        assert cell in before or done[cell] >= update
    assert read_losses(tmp_path) == read_losses(finished)


def test_updates_after_the_last_checkpoint_are_all_that_is_lost(plan, tmp_path):
    child = processes.start(kill_at_update, plan, tmp_path, "1x16-800-seed0", 12)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    started = [event for event in events(plan, tmp_path) if isinstance(event, Started)]
    assert [event.done for event in started[:1]] == [10]


def kill_at_update(plan: StudyPlan, folder: Path, name: str, update: int) -> int:
    """Kills this process after an update of a cell, once the checkpoint before is complete."""
    study_module.TRIAL_SECONDS = 0.01
    cell = ""
    for event in events(plan, folder):
        cell = event.cell.name if isinstance(event, CellStarted) else cell
        if isinstance(event, Step) and cell == name and event.number == update:
            while not (folder / name / "checkpoints" / f"update-{update - 2:08d}").exists():
                pass
            os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_the_time_is_estimated_before_the_first_run(plan, tmp_path):
    first, second, *_ = events(plan, tmp_path, only=["1x16-400-seed0"])
    assert isinstance(first, TimeEstimate)
    assert (first.cells, type(second)) == (1, CellStarted)
    assert 0 < first.seconds < 60


def test_a_folder_of_another_plan_is_refused_before_anything_runs(finished, plan, tmp_path):
    changed = plan.model_copy(
        update={"learning_rate": plan.learning_rate.model_copy(update={"value": 2e-2})}
    )
    with pytest.raises(UsageError, match=r"another train.learning_rate: 0.01, not 0.02"):
        next(events(changed, finished))


def test_the_other_cells_run_when_one_fails(plan, tmp_path):
    bad = tmp_path / "study" / "1x16-400-seed0"
    bad.mkdir(parents=True)
    (bad / "letter.txt").write_text("Mine.")
    seen = []
    with pytest.raises(UsageError, match="1 cells failed: 1x16-400-seed0"):
        seen.extend(events(plan, tmp_path / "study"))
    [failure] = [event for event in seen if isinstance(event, CellFailed)]
    assert "Directory is not empty" in str(failure.error)
    assert len(read_losses(tmp_path / "study")) == 3


def test_the_best_learning_rate_of_a_sweep_counts(plan, finished):
    study = Study(plan, finished)
    result = study.read_result(study.cells[0])
    runs = [
        result._replace(cell=result.cell.__class__(**{**vars(result.cell), "factor": f}), loss=loss)
        for f, loss in ((0.5, 3.0), (1.0, 2.0), (2.0, 1.0), (0.5, 3.0), (1.0, 1.0), (2.0, 2.5))
    ]
    assert [(run.cell.factor, run.loss) for run in choose_best(runs)] == [(1.0, 2.0), (1.0, 1.0)]
    with pytest.raises(UsageError, match="were evaluated on different texts"):
        choose_best([result, result._replace(evaluation_fingerprint="x")])
