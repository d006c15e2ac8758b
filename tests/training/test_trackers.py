"""Trackers log what metrics.jsonl holds, and a resumed run continues the same tracker run."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from finetune.recipe.schema import LoraConfig
from finetune.training import trackers
from finetune.training.events import Interrupted
from finetune.training.finetuning import events
from finetune.training.loop import Step
from finetune.training.trackers import hyperparameters, tracker_options
from task_formats import UsageError
from tests.support import jobs

JOB = ("classification", {"evaluations": 2})
UPDATES = 6


def logged(run: Path, kind: str, name: str) -> dict[int, float]:
    """Update to value, from metrics.jsonl."""
    log = [event for event in jobs.log(run) if event["event"] == kind]
    return {event["update"]: {**event, **event.get("scores", {})}[name] for event in log}


def abandon(job, run: Path, update: int) -> None:
    """Ends a run without a checkpoint of its last update, as a kill does."""
    watched = events(job, run)
    for event in watched:
        if isinstance(event, Step) and event.number == update:
            break
    watched.close()


def test_tensorboard_shows_every_update_once_however_the_run_was_resumed(job, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    job = jobs.change(
        job, "train", trackers=("tensorboard",), checkpoint_updates=2, noise_scale=True
    )
    abandon(job, run, 3)
    state = json.loads((run / "trackers.json").read_text())
    jobs.train(job, run, resume=True)
    assert json.loads((run / "trackers.json").read_text()) == state
    shown = accumulators.EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    for tag, kind, name in (
        ("train/loss", "train", "loss"),
        ("train/learning_rate", "train", "learning_rate"),
        ("evaluate/accuracy", "evaluate", "accuracy"),
    ):
        points = [(point.step, point.value) for point in shown.Scalars(tag)]
        expected = logged(run, kind, name)
        assert [step for step, _ in points] == list(expected)
        assert [value for _, value in points] == pytest.approx(list(expected.values()))
    scales = [(point.step, point.value) for point in shown.Scalars("train/noise_scale")]
    known = {step: value for step, value in logged(run, "train", "noise_scale").items() if value}
    assert known
    assert dict(scales) == pytest.approx(known)
    [final] = shown.Scalars("final/evaluate/accuracy")
    assert final.value == pytest.approx(jobs.result(run)["scores"]["evaluate"]["accuracy"])


def test_trackio_continues_the_run_of_the_folder(job, tmp_path):
    trackio = pytest.importorskip("trackio")
    project, run = f"test-{tmp_path.name}", tmp_path / "run"
    job = jobs.change(job, "train", trackers=("trackio",), tracker_project=project)
    assert jobs.stop_at(job, run, 3).update == 3
    jobs.train(job, run, resume=True)
    jobs.train(job, tmp_path / "other" / "run")
    shown = {one.name: one for one in trackio.Api().runs(project)}
    assert len(shown) == 2
    name = json.loads((run / "trackers.json").read_text())["trackio"]
    assert shown[name].config["train.batch_size"] == job.train.batch_size
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs(project, name)
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert losses == pytest.approx(logged(run, "train", "loss"))
    assert len([row for row in rows if "train/loss" in row]) == UPDATES


@pytest.mark.filterwarnings("ignore")  # MLflow's own.
def test_mlflow_continues_the_run_of_the_folder(job, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "run"
    job = jobs.change(job, "train", trackers=("mlflow",), tracker_project="mine")
    assert jobs.stop_at(job, run, 3).update == 3
    jobs.train(job, run, resume=True)
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert found.info.run_id == json.loads((run / "trackers.json").read_text())["mlflow"]
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["train.batch_size"] == str(job.train.batch_size)
    points = client.get_metric_history(found.info.run_id, "train/loss")
    losses = {point.step: point.value for point in points}
    assert len(points) == len(losses) == UPDATES
    assert losses == pytest.approx(logged(run, "train", "loss"))


def read_wandb(path: Path) -> Iterator[bytes]:
    """The records of an offline run: a log of LevelDB, with a header of 7 bytes."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 2**15 - place % 2**15 < 7:  # No header fits into the rest of the block.
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")  # wandb's own.
def test_wandb_logs_offline_under_the_id_of_the_folder(job, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run, losses, ids = tmp_path / "run", {}, set()
    job = jobs.change(job, "train", trackers=("wandb",), tracker_project="mine")
    assert jobs.stop_at(job, run, 3).update == 3
    jobs.train(job, run, resume=True)
    wandb.teardown()  # Its process writes the rest.
    for path in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        for record in map(Record.FromString, read_wandb(path)):
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project))
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "train/loss" in items:
                losses[items["_step"]] = items["train/loss"]
    # `wandb sync` joins the parts of a run by its id.
    assert ids == {(json.loads((run / "trackers.json").read_text())["wandb"], "mine")}
    assert losses == pytest.approx(logged(run, "train", "loss"))


class Fake(GeneralTracker):
    """Stands in for a tracker with a server: keeps what it receives."""

    name = "mlflow"
    requires_logging_directory = False
    instances: list["Fake"]

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.project, self.options = project, options
        self.steps: list[int] = []
        self.configured = self.finished = 0
        self.instances.append(self)

    @property
    def tracker(self) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="id of the server"))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.configured += 1

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        self.steps.append(step)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", Fake)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["mlflow"])
    monkeypatch.setattr(Fake, "instances", [], raising=False)
    return Fake.instances


def test_an_interrupted_run_has_logged_its_last_update_and_goes_on_under_its_id(
    job, tmp_path, fakes
):
    job = jobs.change(job, "train", trackers=("mlflow",), tracker_project="mine")
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        raise jobs.stop_at(job, run, 4)
    jobs.train(job, run, resume=True)
    first, second = fakes
    assert (first.project, second.project) == ("mine", "mine")
    assert first.options == {"run_name": "run", "run_id": None}
    assert second.options == {"run_name": "run", "run_id": "id of the server"}
    assert max(first.steps) == 4
    assert second.steps[0] == 5
    assert (first.configured, second.configured) == (1, 0)
    assert (first.finished, second.finished) == (1, 1)


def test_overwriting_a_run_begins_a_new_tracker_run(job, tmp_path, fakes):
    job = jobs.change(job, "train", trackers=("mlflow",), epochs=1)
    jobs.train(job, tmp_path / "run")
    jobs.train(job, tmp_path / "run", overwrite=True)
    assert [fake.options["run_id"] for fake in fakes] == [None, None]


def test_wandb_gets_an_id_that_it_may_resume(tmp_path):
    options = tracker_options("wandb", "run-1234", tmp_path / "run", None, 7)
    assert options == {"id": "run-1234", "name": "run", "resume": "allow"}


def test_a_missing_tracker_is_named_before_anything_is_written(job, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    job = jobs.change(job, "train", trackers=("wandb",))
    with pytest.raises(UsageError, match="wandb is not installed\nInstall it: pip install wandb"):
        jobs.train(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_hyperparameters_are_plain_values(job):
    values = hyperparameters(jobs.change(job, "base", lora=LoraConfig(targets=("q", "v"))))
    assert values["base.lora.targets"] == "['q', 'v']"
    assert values["train.epochs"] == job.train.epochs
    assert all(isinstance(value, str | int | float) for value in values.values())
