"""Whole states of a run on disk: tensors and facts that check themselves when they are read.

    checkpoints/update-00000120/
        tensors.safetensors     every tensor, bit for bit
        facts.json              everything else
        manifest.json           name, run, sizes and SHA-256 of the two, sealed; written last

A state is written under another name and renamed when it is on the disk. The newest two stay.
"""

import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.storage import files
from finetune.storage import json_files as json_text
from finetune.storage.sealed_manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    check_file,
    compare,
    read_manifest,
)
from finetune.storage.tensors import Same, find_same, read_tensors, write_tensors
from task_formats import UsageError

TENSORS, FACTS = "tensors.safetensors", "facts.json"
FORMAT = "gptft checkpoint, version 1"
KEEP = 2
"""States that stay: should the newest be damaged, there is the one before."""

_LARGEST_TEXT = 2**26
_NAME = re.compile(r"(update-(\d{1,18}))(\.partial|\.old)?")
# Should several folders claim one update: the finished one, the one about to be, the one before.
_RANKS = {None: 2, ".partial": 1, ".old": 0}


class CheckpointState(NamedTuple):
    """What a run needs to go on, as it was saved."""

    tensors: dict[str, Tensor]
    """On the CPU, in memory of their own; tensors saved as one are one."""
    facts: dict[str, Any]
    path: Path
    run: str | None
    """The identity of the run that saved it; None where that had none."""


def save(
    folder: Path | str,
    update: int,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    run: str | None = None,
) -> Path:
    """Write the state of `run` after `update` updates and delete all but the newest two.

    States of later updates go too: they belong to a future that a resume gave up. One writer
    at a time. UsageError on a full, read-only or forbidden disk, with the earlier states whole.
    """
    return _write(Path(folder), update, *find_same(tensors), _encode(facts), run)


def latest(folder: Path | str, run: str | None = None) -> tuple[CheckpointState | None, list[str]]:
    """The newest whole state of `run`, and a warning with file and reason for every newer one.

    Changes nothing on disk, so any number of processes can call it at once.
    """
    warnings: list[str] = []
    for path in reversed(_states(Path(folder))):
        try:
            return load(path, run), warnings
        except UsageError as error:
            warnings.append(f"{error.headline}; this state is not used")
    return None, warnings


def load(path: Path | str, run: str | None = None) -> CheckpointState:
    """The state in a folder; UsageError naming the file and what is wrong with it.

    With `run`, a state that another run has saved is wrong too.
    """
    path = Path(path)
    with files.explain_os_errors(path):
        _require_state(path)
    manifest = read_manifest(path, FORMAT, run)
    expected = manifest.files
    if expected.keys() != {TENSORS, FACTS}:
        raise UsageError("damaged: it does not list a state's files", where=str(path / MANIFEST))
    if manifest.name != files.final_name(path):
        what = f"belongs to another state, {manifest.name!r}"
        raise UsageError(what, where=str(path / MANIFEST))
    text = files.read_regular_file(path / FACTS, _LARGEST_TEXT)
    compare(path / FACTS, expected[FACTS], _entry(text))
    check_file(path / TENSORS, expected[TENSORS])
    facts = json_text.decode(text, str(path / FACTS))
    if not isinstance(facts, dict):
        raise UsageError("damaged: it holds no facts", where=str(path / FACTS))
    return CheckpointState(read_tensors(path / TENSORS), facts, path, manifest.run)


def _entry(text: bytes) -> FileRecord:
    return FileRecord(len(text), sha256(text).hexdigest())


def _require_state(path: Path) -> None:
    if path.is_symlink():
        raise UsageError("a link, not a folder", where=str(path))
    if path.suffix == ".partial" and not (path / MANIFEST).exists():
        raise UsageError("half written: its save was stopped", where=str(path))


class _Abandoned(Exception):
    """A state shall not be written to its end."""


class CheckpointWriter:
    """Saves states in the background: `save` copies the tensors and training goes on.

    The copy keeps its memory from one save to the next (fresh memory is far slower to fill), as
    much as the tensors take. A failed save raises its UsageError at the next call or at `close`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.run: str | None = None
        """Whose states these are."""
        self._copies: dict[str, Tensor] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None
        self._left = Event()

    def save(self, update: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """As the function `save`, but back as soon as the tensors are copied.

        Waits for the save before it, if that one is still being written.
        """
        self.wait()
        text = _encode(facts)
        distinct, same = find_same(tensors)
        _require_space(self.folder, distinct, text)
        self._copies = {name: self._copy(name, tensor) for name, tensor in distinct.items()}
        self._pending = self._writer.submit(
            _write, self.folder, update, self._copies, same, text, self.run, self._check
        )

    def _check(self) -> None:
        if self._left.is_set():
            raise _Abandoned

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        held = self._copies.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return held.copy_(tensor.detach())

    def poll(self) -> None:
        """Raise the error of a save that has failed; costs nothing."""
        if self._pending and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more; raise the error if that failed.

        Ctrl-C while it waits leaves that state half-written; those before it stay whole.
        """
        pending, self._pending = self._pending, None
        if pending:
            try:
                pending.result()
            except KeyboardInterrupt:
                self._left.set()
                raise

    def close(self, leave: bool = False) -> None:
        """Finish what is being written, or `leave` it half-done, and let the memory go."""
        if leave:
            self._left.set()
        try:
            with suppress(_Abandoned):
                self.wait()
        finally:
            self._writer.shutdown()
            self._copies = {}


def _encode(facts: Mapping[str, Any]) -> bytes:
    text = json_text.encode(facts, exact=True)
    if len(text) > _LARGEST_TEXT:
        raise ValueError(f"facts of {len(text):,} bytes; large things belong into tensors")
    return text


def _require_space(folder: Path, tensors: Mapping[str, Tensor], facts: bytes) -> None:
    numbers = sum(tensor.nbytes for tensor in tensors.values())
    files.check_disk_space(folder, numbers + len(facts) + 500 * len(tensors) + 2**16)


def _write(
    folder: Path,
    update: int,
    tensors: Mapping[str, Tensor],
    same: Same,
    facts: bytes,
    run: str | None,
    before_each: Callable[[], object] = bool,
) -> Path:
    path = folder / f"update-{update:08d}"
    with files.explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _settle(folder)
    _require_space(folder, tensors, facts)
    with files.replace_folder(path) as partial:
        with open(partial / TENSORS, "xb") as file:
            written = FileRecord(*write_tensors(file, tensors, same, before_each))
            files.flush(file)
        files.write_atomically(partial / FACTS, facts)
        manifest = Manifest(FORMAT, path.name, {TENSORS: written, FACTS: _entry(facts)}, run)
        files.write_atomically(partial / MANIFEST, manifest.encode())
    _prune(folder, path)
    return path


def _states(folder: Path) -> list[Path]:
    """Folders of states, half-written ones too, from the oldest to the newest."""
    with files.explain_os_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    matches = [match for match in map(_NAME.fullmatch, names) if match]
    matches.sort(key=lambda match: (int(match[2]), _RANKS[match[3]], match[0]))
    return [folder / match[0] for match in matches]


def _settle(folder: Path) -> None:
    """Give a whole state that a kill left under a passing name its own, and sweep the rest."""
    for path in _states(folder):
        own = path.with_name(files.final_name(path))
        if path.suffix == ".partial" and (path / MANIFEST).exists() and not own.exists():
            path.rename(own)
        if path != own:
            files.finish_replacement(own)


def _prune(folder: Path, newest: Path) -> None:
    states = _states(folder)
    kept = states[: states.index(newest) + 1][-KEEP:]
    with files.explain_os_errors(folder):
        for path in states:
            if path not in kept:
                files.remove(path)
