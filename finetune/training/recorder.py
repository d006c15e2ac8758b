"""What a run writes, by the one process that writes it; the others go through the motions."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from finetune.checkpointing.checkpoint import load_latest_checkpoint
from finetune.checkpointing.model_folder import has_model
from finetune.checkpointing.provenance import check_frozen, collect_provenance, list_changes
from finetune.checkpointing.run_folder import (
    CHECKPOINTS,
    RECIPE,
    RunFolder,
    read_recipe,
    read_result,
)
from finetune.checkpointing.training_state import capture_state, restore_state
from finetune.distributed.collectives import all_reduce_max, barrier
from finetune.distributed.fsdp import gather_state_dict
from finetune.storage import files
from finetune.training.events import Interrupted, Result
from finetune.training.job import TrainingJob
from finetune.training.loop import Step
from finetune.training.progress import TrainingProgress
from task_formats import UsageError

_RESULT = ("scores", "update", "updates", "tokens", "seconds")
_LAG = {"cpu": 1, "cuda": 20}
"""Updates after which losses are read from a device: each reading waits for it."""


class RunRecorder:
    """The run folder as training sees it, on any process."""

    def __init__(self, folder: Path, accelerator: Accelerator, run: RunFolder | None) -> None:
        self.folder, self._accelerator, self._run = folder, accelerator, run
        self._made_with: dict[str, Any] = {}
        self._pending: list[Step] = []
        self._written = 0
        self._refused: list[int] = []
        self.refused_in_a_row = 0

    @classmethod
    def open(
        cls, folder: Path, accelerator: Accelerator, *, resume: bool, overwrite: bool
    ) -> "RunRecorder":
        """Takes the folder on the main process. UsageError where it cannot be had."""
        run = None
        if accelerator.is_main_process:
            run = RunFolder.open(folder, resume=resume, overwrite=overwrite)
        accelerator.wait_for_everyone()
        return cls(folder, accelerator, run)

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:
            if isinstance(error, Interrupted) and error.update is not None:
                stack.callback(self._wait_for_writer)
            if self._run:
                # A second Ctrl-C is not kept waiting by a slow disk.
                now = kind is not None and issubclass(kind, KeyboardInterrupt)
                stack.callback(self._run.close, wait=not now)
            self.flush()

    def _wait_for_writer(self) -> None:
        """All stop together: launchers take the end of one process for the end of all."""
        # Where one has ended in another way than this there is nobody to wait for.
        with suppress(RuntimeError):
            barrier(self._accelerator)

    def finished(self) -> Result | None:
        """The result of a run that has one already."""
        if not (self.folder / "result.json").exists():
            return None
        found = read_result(self.folder)
        if not _is_result(found):
            raise UsageError(
                "result.json is not what a run writes",
                where=str(self.folder),
                cure="Delete that file, and --resume makes it anew.",
            )
        return Result(**{name: found[name] for name in _RESULT}, folder=self.folder)

    def begin(self, job: TrainingJob) -> tuple[TrainingProgress, list[str]]:
        """Goes back to the newest whole state, if there is one; what is worth a notice."""
        notices = list(job.notices())
        sources = job.sources()
        self._made_with = collect_provenance(
            job.origins(),
            {name: source.fingerprint for name, source in sources.items()},
            {name: source.rows for name, source in sources.items()},
        )
        if self._run:
            state = self._run.resume()
            notices += self._run.warnings
        else:
            state, _ = load_latest_checkpoint(self.folder / CHECKPOINTS)
        if state is not None:
            self._check_recipe(job, state.metadata.get("config"))
            with _fitting(state.path):
                restore_state(job.model, job.optimizer, state.tensors)
                notices += list_changes(state.metadata["provenance"], self._made_with)
                check_frozen(job.model, state.metadata["provenance"], self._made_with)
                TrainingProgress.of(state.metadata["progress"])
        if self._run:
            self._run.write_recipe(job.config_yaml())
        self._accelerator.wait_for_everyone()
        progress = TrainingProgress.of(state.metadata["progress"]) if state else TrainingProgress()
        self.refused_in_a_row = progress.refused
        return progress, notices + self._check_best(job, progress)

    def _check_best(self, job: TrainingJob, progress: TrainingProgress) -> list[str]:
        """Sees to it that the run can end where its best model is lost or damaged; what to tell.

        The state may be of that very update; else the best model is what is saved next.
        """
        notices = []
        if self._run and progress.best_update:
            folder = self._run.model_folder
            if not has_model(folder):
                notices = [f"{folder}: no model; the best one, of update {progress.best_update}, "]
        (lost,) = all_reduce_max([len(notices)], self._accelerator)
        if lost and progress.update == progress.best_update:
            self.save_model(job)
            return [notice + "is saved again" for notice in notices]
        if lost:
            progress.forget_best()
        return [notice + "is lost, and the next one is saved instead" for notice in notices]

    def _check_recipe(self, job: TrainingJob, told: Any) -> None:
        """UsageError where a resumed run is told something else than `told`, which its state was.

        By a command, or by a recipe.yaml that was edited, which says nothing true of the state.
        """
        # States that do not say what they were told are from before they did.
        old = job.decisions(told if isinstance(told, str) else read_recipe(self.folder))
        new = job.decisions()
        different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if not different:
            return
        key, where = different[0], self.folder
        cure = f"gptft resume {self.folder} goes on with what it was told."
        if job.decisions(read_recipe(self.folder)) != old:
            where, cure = self.folder / RECIPE, "This file was edited: set that value back in it."
        raise UsageError(
            f"the run in this folder has another {key}: {old.get(key)!r}, not {new.get(key)!r}",
            where=str(where),
            cure=cure,
        )

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Appends an event to metrics.jsonl."""
        self.flush()
        if self._run:
            self._run.log(kind, values)

    def log_step(self, step: Step) -> None:
        """Notes an update; it is written when the device has surely done it."""
        self._pending.append(step)
        if len(self._pending) >= _LAG.get(self._accelerator.device.type, 1):
            self.flush()

    def flush(self) -> None:
        """Writes the updates that were only noted; waits for the device."""
        self._write()
        pending, self._pending, self._written = self._pending, [], 0
        for step in pending:
            bad = bool(step.skipped)
            self.refused_in_a_row = self.refused_in_a_row + 1 if bad else 0
            self._refused += [step.number] if bad else []

    def _write(self) -> None:
        for step in self._pending[self._written :]:
            if self._run:
                self._run.log("train", _readable(step))
            self._written += 1

    def refused(self) -> list[int]:
        """Updates found to be refused since the last call."""
        found, self._refused = self._refused, []
        return found

    def can_write(self, together: bool) -> bool:
        """Whether a state may be written between two updates' ends: no update is refused.

        By all processes together, which have noted the same; or by the one that writes alone. All
        look at what was noted at one time, so this one leaves it to be looked at then.
        """
        if together:
            self.flush()
        if self._refused or any(step.skipped for step in self._pending):
            return False
        if self._pending:
            self.refused_in_a_row = 0
        return together or self._run is not None

    def save(self, job: TrainingJob, progress: TrainingProgress) -> None:
        """Writes a whole state in the background, with all that was noted in the log before it."""
        self._write()
        tensors = capture_state(job.model, job.optimizer, keep=self._run is not None)
        if self._run:
            metadata = {
                "progress": progress.facts(),
                "config": job.config_yaml(),
                "provenance": self._made_with,
            }
            self._run.save(progress.update, tensors, metadata)

    def save_model(self, job: TrainingJob) -> None:
        """Puts the model as it is now in the place of the best one."""
        weights = gather_state_dict(job.model, keep=self._run is not None)
        if self._run:
            with files.replace_folder(self._run.model_folder) as partial:
                job.save_model(partial, weights)
        self._accelerator.wait_for_everyone()

    def write_result(self, job: TrainingJob, result: Result) -> None:
        """Writes the result: the run is finished."""
        values = {name: getattr(result, name) for name in Result.__dataclass_fields__}
        del values["folder"]
        if self._run:
            self._run.write_result({**values, "made_with": self._made_with})
        self._accelerator.wait_for_everyone()


def _readable(step: Step) -> dict[str, Any]:
    return {
        "update": step.number,
        "loss": step.losses.total,
        "task_loss": step.losses.task,
        "lm_loss": step.losses.lm,
        "grad_norm": step.grad_norm,
        "learning_rate": step.learning_rate,
        "examples": step.examples,
        "tokens": step.tokens,
        "seconds": {"step": step.seconds},
    }


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """A checkpoint may be undamaged and still belong to another run."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        what = f"this checkpoint does not fit the run: {str(error).splitlines()[0]}"
        cure = "Delete it, and the one before it is used."
        raise UsageError(what, where=str(path), cure=cure) from error


def _is_result(found: Mapping[str, Any]) -> bool:
    """Whether the values have the types that `write_result` gives them."""
    scores = found.get("scores")
    return (
        isinstance(scores, dict)
        and all(isinstance(values, dict) for values in scores.values())
        and all(isinstance(x, int | float | None) for v in scores.values() for x in v.values())
        and all(isinstance(found.get(name), int | float) for name in _RESULT[1:])
    )
