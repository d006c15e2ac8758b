"""The folder of a run, which one process at a time writes.

recipe.yaml      the resolved recipe
metrics.jsonl    the log: one event a line
result.json      scores; written when the run has finished
model/           the best model; update.json in it says of which update
checkpoints/     see finetune.checkpointing.checkpoint
.gptft           a marker: a run of gptft made this folder
trackers.json    the tracker runs that log this run, with train.trackers
tensorboard/     what the tracker of that name logged
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from torch import Tensor

from finetune.checkpointing.checkpoint import (
    TENSORS,
    Checkpoint,
    CheckpointWriter,
    finish_interrupted_saves,
    load_latest_checkpoint,
    prune_checkpoints,
)
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import Recipe
from finetune.storage import files, json_files
from task_formats import UsageError

RECIPE, LOG, RESULT, MODEL, CHECKPOINTS, TRACKERS, TENSORBOARD = _RUN_FILES = (
    "recipe.yaml", "metrics.jsonl", "result.json", "model", "checkpoints", "trackers.json",
    "tensorboard",
)  # fmt: skip
MARKER, MODEL_UPDATE, _LOCK = ".gptft", "update.json", ".lock"
_EVIDENCE = {LOG: b'{"event": "train", "update": ', RESULT: b'"made_with"'}
"""What files of a run contain near their beginning."""
_LOG_BYTES = "log_bytes"


class RunFolder:
    """Writes the folder of a run. Use it in a `with` block, which locks the folder.

        with RunFolder.open(folder, resume=True) as run:
            run.delete_overwritten()
            checkpoint = run.resume()
            run.write_recipe(text)
            for step in train(checkpoint):
                run.log("train", {"update": step.number, ..., "seconds": {...}})
                run.save(step.number, tensors, metadata)
            run.write_result(scores)

    Values are plain, records or 0-d tensors. Numbers that are not finite become null in the log
    and the result; a checkpoint keeps them. Every method raises UsageError where the disk is full,
    read-only or forbidden.
    """

    def __init__(
        self, folder: Path, lock: FileLock, warnings: list[str], overwrite: bool = False
    ) -> None:
        self.folder, self.warnings = folder, warnings
        self.model_folder = folder / MODEL
        """Where the best model goes; write it with `files.replace_folder`."""
        self.checkpoints = folder / CHECKPOINTS
        self._lock, self._overwrite = lock, overwrite
        self._writer = CheckpointWriter(self.checkpoints)
        self._log: BinaryIO | None = None
        self._kept = 1

    @classmethod
    def open(
        cls, folder: Path | str, *, resume: bool = False, overwrite: bool = False
    ) -> "RunFolder":
        """Locks the folder, creating it where missing.

        Args:
            folder: The run folder.
            resume: A run in it goes on.
            overwrite: A run in it stays until `delete_overwritten` is called.

        Raises:
            UsageError: Another process writes to it, it holds files that no run has made, it holds
                a run and neither `resume` nor `overwrite` is given, or both are given; or its path
                is not valid UTF-8.
        """
        folder = Path(folder)
        _refuse_undecodable(folder)
        if resume and overwrite:
            cure = "Use --resume to continue the run there, or --overwrite to delete it."
            raise UsageError("--resume and --overwrite exclude each other", cure=cure)
        with files.explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_other_files(folder)
            lock = lock_folder(folder)
        try:
            present = any(os.path.lexists(folder / name) for name in _RUN_FILES)
            if present and not (resume or overwrite):
                raise _existing_run(folder)
            if not (folder / MARKER).exists():
                files.write_atomically(folder / MARKER, "A run of gptft made this folder.\n")
            if not overwrite:
                _clean_up(folder)
            nothing = f"{folder}: nothing to resume, the run starts from the beginning"
            return cls(folder, lock, [nothing] if resume and not present else [], overwrite)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self, wait: bool = True) -> None:
        """Waits for the last save, raises its error if it failed, and unlocks the folder.

        Without `wait` the save goes on until the process ends; if that is too early, the
        checkpoint before it stays the newest.
        """
        try:
            if wait:
                self._writer.wait()
        finally:
            if self._log:
                self._log.close()
            with suppress(OSError):
                if not _visible_names(self.folder):  # The run has not begun.
                    files.remove(self.folder / MARKER)
            self._lock.release()

    @property
    def finished(self) -> bool:
        """Whether the folder holds a result that is not to be overwritten."""
        return not self._overwrite and (self.folder / RESULT).exists()

    def delete_overwritten(self) -> None:
        """Deletes the run in a folder that was opened with `overwrite`, else does nothing."""
        if not self._overwrite:
            return
        with files.explain_os_errors(self.folder):
            # In this order, what a kill leaves can be resumed from a checkpoint or the start.
            files.remove(self.folder / RESULT)
            files.remove_folder(self.checkpoints)
            files.remove_folder(self.model_folder)
            for name in _RUN_FILES:
                files.remove(self.folder / name)
        _clean_up(self.folder)
        self._overwrite = False

    def resume(self) -> Checkpoint | None:
        """Returns the latest checkpoint, or None, and cuts the log back to when it was saved.

        Damaged checkpoints are reported in `warnings`.
        """
        checkpoint, warnings = load_latest_checkpoint(self.checkpoints)
        self.warnings += warnings
        size = checkpoint.metadata.get(_LOG_BYTES, 0) if checkpoint else 0
        log = self._open_log()
        if size > os.fstat(log.fileno()).st_size:
            self.warnings.append(f"{self.folder / LOG}: events before the checkpoint are lost")
        else:
            log.truncate(size)
        return checkpoint

    def _open_log(self) -> BinaryIO:
        if self._log is None:
            path = files.safe_join(self.folder, LOG)
            with files.explain_os_errors(path):
                self._log = files.open_regular_file(path, "ab+", buffering=0)
        return self._log

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Appends one event to the log; also raises the error of a save that has failed.

        Args:
            kind: Becomes the event's "event".
            values: The rest of it; what a clock measured is under "seconds", and all else is equal
                when the run is repeated.
        """
        log, remaining = self._open_log(), json_files.encode({"event": kind, **values}) + b"\n"
        with files.explain_os_errors(self.folder / LOG):
            while remaining:
                remaining = remaining[log.write(remaining) :]
        self._writer.poll()

    def save(self, update: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Saves the checkpoint of an update in the background."""
        log = self._open_log()
        with files.explain_os_errors(self.folder / LOG):
            # On the disk before the checkpoint: after a power cut the log must not be the older.
            os.fsync(log.fileno())
        size = os.fstat(log.fileno()).st_size
        self._writer.save(update, tensors, {**metadata, _LOG_BYTES: size})

    def write_recipe(self, text: str) -> None:
        """Writes recipe.yaml."""
        files.write_atomically(files.safe_join(self.folder, RECIPE), text)

    def keep_checkpoints(self, count: int) -> None:
        """Sets how many checkpoints the finished run keeps; before, it has at least two."""
        self._kept, self._writer.keep = count, count

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Writes result.json, after the last checkpoint: the run has finished.

        Checkpoints that a finished run does not need are deleted.
        """
        self._writer.wait()
        content = json_files.encode(values, indent=2) + b"\n"
        files.write_atomically(files.safe_join(self.folder, RESULT), content)
        with files.explain_os_errors(self.checkpoints):
            prune_checkpoints(self.checkpoints, self._kept)


def read_recipe(folder: Path | str) -> str:
    """Returns the text of a run's recipe. Raises UsageError where the folder holds no run."""
    path = _run_file(folder, RECIPE)
    return files.decode_utf8(files.read_regular_file(path), str(path))


def load_run_recipe(folder: Path, trust_remote_code: bool = False) -> Recipe:
    """Returns the resolved recipe of a run, which cannot itself allow code of the base to run.

    Raises:
        UsageError: The folder holds no run, or its base needs code that is not allowed.
    """
    path = _run_file(folder, RECIPE)
    return load_recipe(path, {"base.trust_remote_code": True} if trust_remote_code else {})


def read_result(folder: Path | str) -> dict[str, Any]:
    """Returns the result of a finished run. Raises UsageError where there is none."""
    path = _run_file(folder, RESULT)
    content = json_files.decode(files.read_regular_file(path), str(path))
    if not isinstance(content, dict):
        raise UsageError("not a result", where=str(path))
    return content


def _run_file(folder: Path | str, name: str) -> Path:
    """The path of a file of a run; UsageError where it is missing."""
    path = files.safe_join(folder, name)
    if path.exists():
        return path
    if is_run(Path(folder)):
        what, cure = f"{name} is missing", "`gptft resume` finishes an interrupted run."
    else:
        what, cure = f"Not a run directory: {name} is missing", "Check the path."
    raise UsageError(what, where=str(folder), cure=cure)


def is_run(folder: Path) -> bool:
    """Whether a run of gptft made this folder; others may have a recipe.yaml or model/ too.

    Copies without hidden files, and runs of older versions, have no marker. They are recognized by
    their result, checkpoints or log.
    """
    if (folder / MARKER).is_file() or any((folder / CHECKPOINTS).glob(f"update-*/{TENSORS}")):
        return True
    for name, content in _EVIDENCE.items():
        with suppress(OSError, UsageError), files.open_regular_file(folder / name) as file:
            if content in file.read(2**20):
                return True
    return False


def lock_folder(folder: Path) -> FileLock:
    """Locks a folder; the system releases the lock with the process, however that ends.

    Raises:
        UsageError: Another process has locked it.
    """
    path = folder / _LOCK
    lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        owner = ""
        with suppress(PermissionError):
            owner = path.read_text(encoding="utf-8")
        what = f"in use by {owner or 'another process'}"
        cure = "Wait until it ends, or choose another directory."
        raise UsageError(what, where=str(folder), cure=cure) from None
    with suppress(PermissionError):  # Windows writes to a locked file by no other handle.
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    return lock


def _refuse_undecodable(folder: Path) -> None:
    """Raises UsageError for a path that the tokenizer could not be saved in, after the training."""
    path = str(folder.absolute())
    try:
        path.encode()
    except UnicodeEncodeError:
        cure = "Choose another folder for the run, with -o."
        raise UsageError("a path that is not valid UTF-8", where=repr(path), cure=cure) from None


def _refuse_other_files(folder: Path) -> None:
    """Raises UsageError where the folder holds visible files and no run."""
    others = _visible_names(folder)
    if others and not is_run(folder):
        listed = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise UsageError(
            f"Directory is not empty: it holds {listed}",
            where=str(folder),
            cure="Choose an empty directory, or one that does not exist yet.",
        )


def is_unfinished(folder: Path) -> bool:
    """Whether a run has no result yet. A download of a run, which has no log, is finished."""
    return is_run(folder) and not (folder / RESULT).exists()


def _visible_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def _existing_run(folder: Path) -> UsageError:
    if (folder / RESULT).exists():
        what = "holds a finished run"
        cure = (
            "Choose another directory, or use --overwrite to delete it. "
            "--resume --epochs N trains it longer."
        )
    else:
        what = "holds a run that is not finished"
        cure = "Use --resume to continue it, --overwrite to delete it, or another directory."
    return UsageError(what, where=str(folder), cure=cure)


def _clean_up(folder: Path) -> None:
    """Deletes what a kill left in the middle of a write."""
    with files.explain_os_errors(folder):
        for path in folder.glob(".*.partial"):
            files.remove(path)
        files.finish_replacement(files.safe_join(folder, MODEL))
        finish_interrupted_saves(files.safe_join(folder, CHECKPOINTS))
