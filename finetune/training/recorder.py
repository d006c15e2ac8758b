"""Records metrics, checkpoints and models of a run."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator

from finetune.checkpointing.checkpoint import (
    capture_state,
    load_latest_checkpoint,
    restore_state,
)
from finetune.checkpointing.model_card import MODEL_CARD
from finetune.checkpointing.model_folder import has_model
from finetune.checkpointing.provenance import check_same_content, collect_provenance, list_changes
from finetune.checkpointing.run_folder import (
    CHECKPOINTS,
    MODEL,
    MODEL_UPDATE,
    RECIPE,
    RESULT,
    RunFolder,
    read_recipe,
    read_result,
)
from finetune.distributed.collectives import barrier
from finetune.distributed.fsdp import gather_state_dict
from finetune.recipe.schema import StrictModel
from finetune.recipe.yaml_documents import parse_document
from finetune.storage import files, json_files
from finetune.training.events import Interrupted, Result
from finetune.training.job import TrainingJob
from finetune.training.loop import Step
from finetune.training.noise_scale import MomentAverages, NoiseScale, estimate_moments
from finetune.training.progress import TrainingProgress
from task_formats import UsageError

_RESULT_FIELDS = ("scores", "majority", "update", "updates", "tokens", "seconds", "noise_scale")
_LENGTHS = ("epochs", "updates")
"""Settings of `train` that may become higher when a run is resumed."""
READ_DELAY = {"cpu": 1, "cuda": 20}
"""Updates after which losses are read from a device, since each reading waits for it."""


class RunRecorder:
    """Writes the run folder on rank 0; on other ranks the writing methods do nothing.

    All processes create it and call its methods together.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, run: RunFolder | None, overwrite: bool
    ) -> None:
        self.folder, self._accelerator, self._run = folder, accelerator, run
        self._overwrite = overwrite
        self.model_folder = folder / MODEL
        self.consecutive_nonfinite = 0
        self.gradient_moments = MomentAverages()
        """Of all updates that have been read from the device."""
        self._provenance: dict[str, Any] = {}
        self._pending: list[Step] = []
        self._written = 0
        self._nonfinite: list[int] = []

    @classmethod
    def open(
        cls, folder: Path, accelerator: Accelerator, *, resume: bool, overwrite: bool
    ) -> "RunRecorder":
        """Locks the run folder. Arguments and errors are those of `RunFolder.open`."""
        run = None
        if accelerator.is_main_process:
            run = RunFolder.open(folder, resume=resume, overwrite=overwrite)
        accelerator.wait_for_everyone()
        return cls(folder, accelerator, run, overwrite)

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
                # Launchers end all processes as soon as one has ended: wait for the writer.
                stack.callback(self._barrier_if_possible)
            if self._run:
                # A second Ctrl-C does not wait for a slow disk.
                at_once = kind is not None and issubclass(kind, KeyboardInterrupt)
                stack.callback(self._run.close, wait=not at_once)
            self.flush()

    def _barrier_if_possible(self) -> None:
        with suppress(RuntimeError):  # A peer has ended in another way.
            barrier(self._accelerator)

    def finished_result(self) -> Result | None:
        """Returns the result of a finished run that is not to be overwritten, else None."""
        if self._overwrite or not (self.folder / RESULT).exists():
            return None
        # Older results have neither.
        values = {"majority": {}, "noise_scale": None, **read_result(self.folder)}
        if not values.keys() >= set(_RESULT_FIELDS):
            raise UsageError(
                "result.json is damaged",
                where=str(self.folder),
                cure="Delete that file; --resume writes it again.",
            )
        # JSON has no NaN: a score that is not finite is null there.
        values["scores"] = {
            split: {name: math.nan if value is None else value for name, value in scores.items()}
            for split, scores in values["scores"].items()
        }
        if values["noise_scale"] is not None:
            values["noise_scale"] = read_noise_scale(values["noise_scale"])
        return Result(**{name: values[name] for name in _RESULT_FIELDS}, folder=self.folder)

    def is_longer(self, config: StrictModel) -> bool:
        """Whether a configuration has more epochs or updates than the run in the folder."""
        old = parse_document(read_recipe(self.folder), "").data.get("train", {})
        new = config.model_dump()["train"]
        return any(_is_more(new.get(name), old.get(name)) for name in _LENGTHS)

    def begin(self, job: TrainingJob) -> tuple[TrainingProgress, list[str]]:
        """Restores the latest checkpoint, or deletes the run that is to be overwritten.

        Returns:
            The progress to continue from, and messages for the user.

        Raises:
            UsageError: The checkpoint belongs to another configuration, base or data.
        """
        notices = list(job.notices)
        self._provenance = collect_provenance(
            job.base_fingerprints,
            {name: source.fingerprint for name, source in job.sources.items()},
            {name: source.rows for name, source in job.sources.items()},
        )
        if self._run:
            self._run.delete_overwritten()
        self._accelerator.wait_for_everyone()
        progress, restored = self._restore_latest(job)
        notices += restored
        self.consecutive_nonfinite = progress.consecutive_nonfinite
        self.gradient_moments = progress.gradient_moments
        if progress.best_update and not has_model(self.model_folder):
            notices.append(f"{self.model_folder}: no model; the next evaluation saves one")
            progress.forget_best()
        self._accelerator.wait_for_everyone()
        if self._run:
            self._check_disk_space(job)
            self._run.keep_checkpoints(job.schedule.keep_checkpoints)
            # In this order a kill leaves an unfinished run that can be resumed.
            files.remove(self.folder / RESULT)
            self._run.write_recipe(job.config.to_yaml())
        self._accelerator.wait_for_everyone()
        return progress, notices

    def _restore_latest(self, job: TrainingJob) -> tuple[TrainingProgress, list[str]]:
        """Restores model and optimizer from the latest checkpoint, if there is one."""
        notices: list[str] = []
        if self._run:
            checkpoint = self._run.resume()
            notices += self._run.warnings
        else:
            checkpoint, _ = load_latest_checkpoint(self.folder / CHECKPOINTS)
        if checkpoint is None:
            if (self.folder / RESULT).exists():
                what = "the run has no checkpoint from which it could be trained longer"
                cure = "Train anew with all the epochs, in another directory or with --overwrite."
                raise UsageError(what, where=str(self.folder), cure=cure)
            return TrainingProgress(), notices
        metadata = checkpoint.metadata
        with _mismatches_explained(checkpoint.path):
            notices += self._check_settings(job, metadata["config"])
            check_same_content(metadata["provenance"], self._provenance)
            restore_state(job.model, job.optimizer, checkpoint.tensors)
            notices += list_changes(metadata["provenance"], self._provenance)
            saved = metadata["progress"]
            moments = MomentAverages(**saved.get("gradient_moments", {}))
            progress = TrainingProgress(**{**saved, "gradient_moments": moments})
        return progress, notices

    def _check_disk_space(self, job: TrainingJob) -> None:
        """Raises UsageError if the disk will be full before the run ends."""
        folders = (self.folder / CHECKPOINTS, self.model_folder)
        present = sum(path.stat().st_size for folder in folders for path in folder.rglob("*"))
        needed, free = job.required_disk_bytes() - present, files.free_space(self.folder)
        if needed <= free:
            return
        sizes = [f"{number / 2**20:,.0f} MiB" for number in (needed, free)]
        raise UsageError(
            f"the run needs {sizes[0]} of disk space for its model and checkpoints, "
            f"and {sizes[1]} are free",
            where=str(self.folder),
            cure="Free some space, or choose a folder on another disk with -o. Without regular "
            "checkpoints less is needed: --set train.checkpoint_minutes=null.",
        )

    def _check_settings(self, job: TrainingJob, config_yaml: str) -> list[str]:
        """Compares the configuration with that of the checkpoint; returns notices.

        Raises:
            UsageError: A setting differs that may not change, or the run would become shorter.
        """
        old, new = job.fixed_settings(config_yaml), job.fixed_settings()
        different = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        notices = []
        for key in [f"train.{name}" for name in _LENGTHS if f"train.{name}" in different]:
            unit, more = key.removeprefix("train."), _is_more(new.get(key), old.get(key))
            if more:
                different.remove(key)
                notices.append(
                    f"trained longer: {new[key]:g} {unit} instead of {old[key]:g}. The remaining "
                    f"updates have the learning rates of a run of {new[key]:g} {unit}"
                )
            elif _is_more(old.get(key), new.get(key)):
                raise UsageError(
                    f"the run in this folder has {old[key]:g} {unit}, and {new[key]:g} are fewer",
                    where=str(self.folder),
                    cure="A run can be made longer, but not shorter.",
                )
        if not different:
            return notices
        key, where = different[0], self.folder
        cure = f"gptft resume {self.folder} uses the run's own settings."
        if key == "train.precision":  # Perhaps "auto", on a machine where it means another one.
            cure = f"Add --resume --precision {old.get(key)} to the command that started it."
        elif job.fixed_settings(read_recipe(self.folder)) != old:
            where, cure = self.folder / RECIPE, "This file was edited: restore that value."
        raise UsageError(
            f"the run in this folder has another {key}: {old.get(key)!r}, not {new.get(key)!r}",
            where=str(where),
            cure=cure,
        )

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Appends an event to metrics.jsonl, after the updates before it."""
        self.flush()
        if self._run:
            self._run.log(kind, values)

    def log_step(self, step: Step) -> None:
        """Records an update; it is written once the device has surely finished it."""
        self._pending.append(step)
        if len(self._pending) >= READ_DELAY.get(self._accelerator.device.type, 1):
            self.flush()

    def flush(self) -> None:
        """Writes all recorded updates; waits for the device."""
        self._write_pending()
        for step in self._pending:
            nonfinite = bool(step.nonfinite)
            self.consecutive_nonfinite = self.consecutive_nonfinite + 1 if nonfinite else 0
            self._nonfinite += [step.number] if nonfinite else []
        self._pending, self._written = [], 0

    def _write_pending(self) -> None:
        for step in self._pending[self._written :]:
            values = _loggable(step)
            if step.group_norms is not None:
                values |= self._measure_noise(step)
            if self._run:
                self._run.log("train", values)
            self._written += 1

    def _measure_noise(self, step: Step) -> dict[str, Any]:
        """Averages the gradient moments of an update; returns what the log holds of them."""
        assert step.group_norms is not None
        square, sizes = step.group_norms
        moments = estimate_moments(float(square), float(step.grad_norm) ** 2, sizes)
        if not step.nonfinite:
            self.gradient_moments.add(moments)
        scale = self.gradient_moments.noise_scale()
        return {
            "gradient_noise": moments.noise,
            "gradient_signal": moments.signal,
            "noise_scale": None if scale is None else scale.value,
        }

    def take_nonfinite(self) -> list[int]:
        """Returns updates found to be not finite since the last call."""
        numbers, self._nonfinite = self._nonfinite, []
        return numbers

    def save_checkpoint(self, job: TrainingJob, progress: TrainingProgress) -> None:
        """Saves a checkpoint in the background, with everything before it in the log."""
        self._write_pending()
        tensors = capture_state(job.model, job.optimizer, keep=self._run is not None)
        if self._run:
            metadata = {
                "progress": asdict(progress),
                "config": job.effective_yaml,
                "provenance": self._provenance,
            }
            self._run.save(progress.update, tensors, metadata)

    def save_model(self, job: TrainingJob, update: int) -> None:
        """Saves the current model, that of an update, as the run's best one."""
        weights = gather_state_dict(job.model, keep=self._run is not None)
        if self._run:
            with files.replace_folder(self.model_folder) as partial:
                job.save_model(partial, weights)
                content = json_files.encode({"update": update}) + b"\n"
                files.write_atomically(partial / MODEL_UPDATE, content)
        self._accelerator.wait_for_everyone()

    def saved_model_update(self) -> int | None:
        """Returns the update of the saved model; None if the folder does not say it."""
        path = self.model_folder / MODEL_UPDATE
        if not path.exists():
            return None
        values = json_files.decode(files.read_regular_file(path), str(path))
        return values.get("update") if isinstance(values, dict) else None

    def write_result(self, job: TrainingJob, result: Result) -> None:
        """Writes the model card, and result.json: the run is finished."""
        if self._run:
            values = {name: getattr(result, name) for name in _RESULT_FIELDS}
            values["made_with"] = self._provenance
            card = job.model_card(self.folder.absolute().name, values)
            files.write_atomically(self.model_folder / MODEL_CARD, card)
            self._run.write_result(values)
        self._accelerator.wait_for_everyone()


def _loggable(step: Step) -> dict[str, Any]:
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


def read_noise_scale(values: Mapping[str, Any]) -> NoiseScale:
    """Reads a noise scale of the log or the result, where an open end is null."""
    high = math.inf if values["high"] is None else values["high"]
    return NoiseScale(values["value"], values["low"], high)


def _is_more(new: Any, old: Any) -> bool:
    """Whether both are numbers, and the first one is higher."""
    return all(isinstance(value, int | float) for value in (new, old)) and new > old


@contextmanager
def _mismatches_explained(path: Path) -> Iterator[None]:
    """Turns errors of a checkpoint that is undamaged but of another run into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        reason = f"its metadata has no {reason}" if isinstance(error, KeyError) else reason
        raise UsageError(
            f"this checkpoint does not fit the run: {reason}",
            where=str(path),
            cure="Delete it to use the one before.",
        ) from error
