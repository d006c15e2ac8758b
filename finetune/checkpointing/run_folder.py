"""The folder of a run: one writer, a log that resumes to the byte, recipe, result and states.

run.json         the identity of the run, by which it knows its states
recipe.yaml      what the run was told
metrics.jsonl    one event a line
result.json      scores; there when the run has finished
model/           the best model
checkpoints/     whole states, see finetune.checkpointing.checkpoint
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from io import BufferedReader, FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from finetune.checkpointing import checkpoint
from finetune.storage import files, lock
from finetune.storage import json_files as json_text
from task_formats import UsageError

RECIPE, LOG, RESULT, MODEL, CHECKPOINTS = (
    "recipe.yaml", "metrics.jsonl", "result.json", "model", "checkpoints",
)  # fmt: skip
_IDENTITY, _LOCK = "run.json", ".lock"
_PARTS = (_IDENTITY, RECIPE, LOG, RESULT, MODEL, CHECKPOINTS)
_LOG_SIZE = "log_bytes"
_LONGEST_LINE = 2**24

SECONDS = "seconds"
"""The key of an event for everything that a clock has measured; all else is the same each time."""


class RunFolder:
    """The one writer of a run folder; use it in a `with` block.

        with Run.open(folder, resume=resume) as run:
            state = run.restore()
            run.save_recipe(text)
            for step in steps(state):
                run.log("train", {"update": step.number, ..., "seconds": {...}})
                if due(step):
                    run.save(step.number, tensors, facts)
            run.write_result(scores)

    Values that `log`, `save` and `write_result` take are plain, records or 0-d tensors; numbers
    that are not finite become null in the log and the result, and stay what they are in facts.
    Every method raises UsageError where the disk is full, read-only or forbidden.
    """

    def __init__(self, folder: Path, held: FileIO, warnings: list[str]) -> None:
        self.folder, self.warnings = folder, warnings
        self.model_folder = files.safe_join(folder, MODEL)
        """Where the best model goes; `files.replace_folder` puts it there as a whole."""
        self.checkpoints = files.safe_join(folder, CHECKPOINTS)
        self._lock = held
        self._saver = checkpoint.CheckpointWriter(self.checkpoints)
        self._log: FileIO | None = None

    @classmethod
    def open(
        cls, folder: Path | str, *, resume: bool = False, overwrite: bool = False
    ) -> "RunFolder":
        """Take the folder, made where missing, for a new run or to go on with the one in it.

        UsageError where another process has it, where it holds files of something else, or where
        it holds a run and neither `resume` nor `overwrite` (which deletes that run) is wanted,
        or both are.
        """
        folder = Path(folder)
        if resume and overwrite:
            cure = "Give --resume to go on with the run there, or --overwrite to delete it."
            raise UsageError("--resume and --overwrite exclude each other", cure=cure)
        with files.explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(folder)
        held = lock.acquire_lock(folder / _LOCK)
        try:
            started = [name for name in _PARTS if os.path.lexists(folder / name)]
            if started and not (resume or overwrite):
                raise _not_empty(folder)
            with files.explain_os_errors(folder):
                _tidy(folder, [] if resume else started)
            nothing = f"{folder}: nothing to resume here, so this run starts anew"
            return cls(folder, held, [nothing] if resume and not started else [])
        except BaseException:
            held.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self, leave: bool = False) -> None:
        """Finish the save under way, raise its error if it failed, and unlock the folder.

        With `leave` that save is left half-done, and the state before it is the newest.
        """
        try:
            self._saver.close(leave)
        finally:
            if self._log:
                self._log.close()
            self._lock.close()

    @property
    def identity(self) -> str | None:
        """What the run calls itself in what it writes, once it is restored."""
        return self._saver.run

    @property
    def finished(self) -> bool:
        """Whether the folder holds a result."""
        return (self.folder / RESULT).exists()

    def restore(self) -> checkpoint.CheckpointState | None:
        """The newest whole state, or None; the log is cut back to the moment it was saved.

        What was found damaged, or another run's, on the way is told in `warnings`.
        """
        identity = read_identity(self.folder)
        state, warnings = checkpoint.latest(self.checkpoints, identity)
        self.warnings += warnings
        if state and identity and not state.run:
            self.warnings.append(f"{state.path}: it names no run, so it may be another's; used")
        size = state.facts.get(_LOG_SIZE) if state else 0
        self._cut_log(size if isinstance(size, int) else 0)
        self._saver.run = identity or self._identify(state)
        return state

    def _identify(self, state: checkpoint.CheckpointState | None) -> str:
        """Gives the run an identity: that of its state, should run.json have been lost."""
        identity = (state and state.run) or secrets.token_hex(16)
        content = json_text.encode({"id": identity}, indent=1) + b"\n"
        files.write_atomically(files.safe_join(self.folder, _IDENTITY), content)
        return identity

    def _cut_log(self, size: int) -> None:
        with files.explain_os_errors(self.folder / LOG):
            log = self._open_log()
            whole = _end_of_line(log, size)
            if whole < size:
                self.warnings.append(f"{self.folder / LOG}: events from before the state are lost")
            log.truncate(whole)

    def _open_log(self) -> FileIO:
        if self._log is None:
            path = files.safe_join(self.folder, LOG)
            self._log = files.open_regular_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        return self._log

    def log(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one event to metrics.jsonl; whatever a clock measured belongs under "seconds".

        Also raises the error of a background save that failed since the last call.
        """
        line = json_text.encode({"event": kind, **values}) + b"\n"
        with files.explain_os_errors(self.folder / LOG):
            log, rest = self._open_log(), memoryview(line)
            while rest:
                rest = rest[log.write(rest) :]
        self._saver.poll()

    def save(self, update: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Save the state after `update` updates; training goes on while it is being written."""
        with files.explain_os_errors(self.folder / LOG):
            log = self._open_log()
            # On the disk before the state: after a power cut the log must not be the older one.
            os.fsync(log.fileno())
            size = os.fstat(log.fileno()).st_size
        self._saver.save(update, tensors, {**facts, _LOG_SIZE: size})

    def save_recipe(self, text: str) -> None:
        """Write recipe.yaml."""
        files.write_atomically(files.safe_join(self.folder, RECIPE), text)

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Write result.json, after the last save is on the disk: the run has finished."""
        self._saver.wait()
        content = json_text.encode(values, indent=2) + b"\n"
        files.write_atomically(files.safe_join(self.folder, RESULT), content)


def read_identity(folder: Path | str) -> str | None:
    """What a run calls itself in what it writes; None where it has no name yet."""
    path = files.safe_join(folder, _IDENTITY)
    if not path.exists():
        return None
    content = json_text.decode(files.read_regular_file(path, limit=2**16), str(path))
    identity = content.get("id") if isinstance(content, dict) else None
    if not isinstance(identity, str) or not identity:
        cure = "Delete it, and the newest state says whose it is."
        raise UsageError("damaged: it names no run", where=str(path), cure=cure)
    return identity


def read_recipe(folder: Path | str) -> str:
    """The text of a run's recipe; UsageError where the folder holds no run."""
    path = _part(folder, RECIPE)
    try:
        return files.read_regular_file(path, limit=2**20).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8: {error}", where=str(path)) from None


def read_result(folder: Path | str) -> dict[str, Any]:
    """The result of a finished run; UsageError where there is none."""
    path = _part(folder, RESULT)
    content = json_text.decode(files.read_regular_file(path), str(path))
    if not isinstance(content, dict):
        raise UsageError("holds no result", where=str(path))
    return content


def read_log(folder: Path | str, *, seconds: bool = True) -> Iterator[dict[str, Any]]:
    """The events of a run in order; a last line that is only half written is left out.

    Without `seconds` two runs of one recipe on one machine give equal events, resumed or not.
    """
    path = _part(folder, LOG)
    with files.explain_os_errors(path), BufferedReader(files.open_regular_file(path)) as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                return
            event = json_text.decode(line, f"{path}, line {number}")
            if not isinstance(event, dict):
                raise UsageError("holds no event", where=f"{path}, line {number}")
            yield {key: event[key] for key in event if seconds or key != SECONDS}


def _part(folder: Path | str, name: str) -> Path:
    path = files.safe_join(folder, name)
    if path.exists():
        return path
    started = any((Path(folder) / part).exists() for part in _PARTS)
    raise UsageError(
        f"no {name}" + ("" if started else ", so this is no folder of a run"),
        where=str(folder),
        cure="`gptft train --resume` finishes a run." if started else "Check the path.",
    )


def _refuse_foreign(folder: Path) -> None:
    """UsageError where the folder holds files and none that mark a run; hidden ones don't count."""
    names = sorted(path.name for path in folder.iterdir())
    if _LOCK in names or RECIPE in names:
        return
    if foreign := [name for name in names if not name.startswith(".")]:
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UsageError(
            f"holds files that are no run's: {listed}",
            where=str(folder),
            cure="Choose an empty folder, or one that does not exist yet.",
        )


def _not_empty(folder: Path) -> UsageError:
    if (folder / RESULT).exists():
        what, cure = "holds a finished run", "Choose another folder, or --overwrite to delete it."
    else:
        what = "holds a run that has not finished"
        cure = "--resume to go on with it, --overwrite to delete it, or choose another folder."
    return UsageError(what, where=str(folder), cure=cure)


def _tidy(folder: Path, unwanted: list[str]) -> None:
    for name in unwanted:
        files.remove(folder / name)
    for path in folder.glob(".*.partial"):
        files.remove(path)
    files.finish_replacement(folder / MODEL)


def _end_of_line(log: FileIO, size: int) -> int:
    """The end of the last whole line within the first `size` bytes."""
    end = min(size, os.fstat(log.fileno()).st_size)
    while end > 0:
        start = max(0, end - files.BLOCK)
        found = os.pread(log.fileno(), end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
