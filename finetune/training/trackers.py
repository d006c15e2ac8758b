"""Experiment trackers: logs the events of a run through Accelerate's tracker classes."""

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from finetune.checkpointing.run_folder import TENSORBOARD, TRACKERS
from finetune.recipe.schema import CommonTrainConfig, StrictModel
from finetune.storage import files, json_files
from finetune.training.events import Evaluated, Event, Finished, Started
from finetune.training.loop import Step
from finetune.training.recorder import READ_DELAY
from task_formats import UsageError


def check_trackers(config: CommonTrainConfig) -> None:
    """Raises UsageError if a tracker of the configuration is not installed."""
    installed = {str(name) for name in get_available_trackers()}
    for name in config.trackers:
        if name not in installed:
            cure = f"Install it: pip install {name}"
            raise UsageError(f"{name} is not installed", where="train.trackers", cure=cure)


def track(
    events: Iterator[Event],
    config: StrictModel,
    train: CommonTrainConfig,
    folder: Path,
    accelerator: Accelerator,
) -> Iterator[Event]:
    """Passes the events of a run on, after logging them to its trackers.

    A resumed run continues the tracker run that it began, which `trackers.json` in its folder
    names. Closing the generator closes `events` and the trackers.

    Args:
        events: The events of the run.
        config: The recipe or plan, logged once as hyperparameters.
        train: The section of it that names the trackers.
        folder: The run folder.
        accelerator: Only its main process logs.
    """
    if not train.trackers or not accelerator.is_main_process:
        yield from events
        return
    log = TrackerLog(config, train, folder)
    with closing(log), closing(events):  # type: ignore[type-var]
        for event in events:
            log.add(event)
            yield event


class TrackerLog:
    """The trackers of one run, which start with its `Started` event."""

    def __init__(self, config: StrictModel, train: CommonTrainConfig, folder: Path) -> None:
        self._config, self._train, self._folder = config, train, folder
        self._trackers: list[GeneralTracker] = []
        self._pending: list[Step] = []

    def add(self, event: Event) -> None:
        """Logs an event. Losses are read late, as reading one waits for the device."""
        match event:
            case Started():
                self._trackers = start_trackers(self._config, self._train, self._folder, event.done)
            case Step():
                self._pending.append(event)
                device = event.losses.total.device.type
                if len(self._pending) >= READ_DELAY.get(device, 1):
                    self._log_steps()
            case Evaluated():
                self._log_steps()
                scores = {f"evaluate/{name}": value for name, value in event.scores.items()}
                self._log({**scores, "epoch": event.epoch}, event.update)
            case Finished(result):
                self._log_steps()
                scores = {
                    f"final/{split}/{name}": value
                    for split, values in result.scores.items()
                    for name, value in values.items()
                }
                self._log(scores, result.updates)

    def close(self) -> None:
        """Logs the last updates and closes the trackers."""
        try:
            self._log_steps()
        finally:
            for tracker in self._trackers:
                tracker.finish()

    def _log_steps(self) -> None:
        for step in self._pending:
            losses = {"loss": step.losses.total, "task_loss": step.losses.task}
            losses |= {"lm_loss": step.losses.lm, "grad_norm": step.grad_norm}
            values = {f"train/{name}": float(value) for name, value in losses.items()}
            values["train/learning_rate"] = step.learning_rate
            values["train/tokens_per_second"] = step.tokens / max(step.seconds, 1e-9)
            if step.noise_scale is not None:
                values["train/noise_scale"] = step.noise_scale.value
            self._log(values, step.number)
        self._pending = []

    def _log(self, values: dict[str, float], update: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, step=update)


def start_trackers(
    config: StrictModel, train: CommonTrainConfig, folder: Path, done: int
) -> list[GeneralTracker]:
    """Starts new tracker runs, or continues those that this run folder began.

    Args:
        config: Logged as hyperparameters of a new tracker run.
        train: Names the trackers and their project.
        folder: The run folder.
        done: Updates before the resume.
    """
    state = _read_state(folder)
    run = state.setdefault("run", f"{folder.absolute().name}-{secrets.token_hex(4)}")
    trackers = []
    for name in train.trackers:
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        options = tracker_options(name, run, folder, state.get("mlflow"), done)
        project = TENSORBOARD if name == "tensorboard" else train.tracker_project
        if name == "trackio":
            # It replaces the configuration with that of each start, and ignores later changes.
            options["config"] = hyperparameters(config)
        tracker = tracker_class(project, **options)
        tracker.start()
        if name not in state:
            tracker.store_init_configuration(hyperparameters(config))
        state[name] = tracker.tracker.info.run_id if name == "mlflow" else run
        trackers.append(tracker)
    files.write_atomically(folder / TRACKERS, json_files.encode(state, indent=2).decode() + "\n")
    return trackers


def tracker_options(
    name: str, run: str, folder: Path, mlflow_run: str | None, done: int
) -> dict[str, Any]:
    """Returns the arguments of a tracker class of Accelerate, after the name of the project.

    Args:
        name: The tracker.
        run: Name of the tracker run; no other run folder has it.
        folder: The run folder.
        mlflow_run: The id that MLflow gave to the tracker run; None if it is new.
        done: Updates before the resume.
    """
    if name == "tensorboard":
        # What was logged after the checkpoint is logged again.
        return {"logging_dir": str(folder), "purge_step": done + 1}
    if name == "mlflow":
        return {"run_name": folder.absolute().name, "run_id": mlflow_run}
    if name == "wandb":
        return {"id": run, "name": folder.absolute().name, "resume": "allow"}
    return {"name": run, "resume": "allow"}


def hyperparameters(config: StrictModel) -> dict[str, str | int | float | bool]:
    """Returns dotted key to value of a configuration; lists and mappings are texts.

    >>> from finetune.recipe.schema import LoraConfig
    >>> hyperparameters(LoraConfig(targets=("q", "v")))
    {'rank': 8, 'alpha': 16.0, 'dropout': 0.0, 'targets': "['q', 'v']"}
    """
    values: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        section = getattr(config, name)
        if isinstance(section, StrictModel):
            inner = hyperparameters(section)
            values |= {f"{name}.{key}": inner_value for key, inner_value in inner.items()}
        elif value is not None:
            values[name] = value if isinstance(value, str | int | float) else str(value)
    return values


def _read_state(folder: Path) -> dict[str, Any]:
    """The tracker runs of a run folder; empty if it has none."""
    path = folder / TRACKERS
    return json_files.decode(path.read_bytes(), str(path)) if path.exists() else {}
