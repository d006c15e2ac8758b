"""Checkpoints of a run: everything that resuming needs, verified when it is read.

    checkpoints/update-00000120/
        tensors.safetensors     weights and optimizer moments, bit for bit
        metadata.json           everything else, floats exact
        manifest.json           size and SHA-256 of both; written last

A checkpoint is written under a temporary name and renamed when it is on the disk. The newest two
are kept: should one be damaged, there is the one before it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetune.storage import files, json_files
from finetune.storage.manifest import (
    Manifest,
    read_manifest,
    record_file,
    verify_files,
    write_manifest,
)
from finetune.storage.tensors import read_tensors, save_tensors
from task_formats import UsageError

TENSORS, METADATA, MANIFEST = "tensors.safetensors", "metadata.json", "manifest.json"
FORMAT = "gptft checkpoint, version 2"
KEEP = 2

_OLD_FORMAT = "gptft checkpoint, version 1"
_NAME = re.compile(r"update-(\d{1,18})")


class Checkpoint(NamedTuple):
    """What a run needs to resume, as it was saved."""

    tensors: dict[str, Tensor]
    """On the CPU, in their own memory."""
    metadata: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: Path, update: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Writes the checkpoint of an update and deletes all but the newest two up to this update.

    Later ones are deleted too: they belong to updates that are about to be repeated. Only one
    process may write at a time.

    Raises:
        UsageError: The disk is full, read-only or forbidden; earlier checkpoints are unharmed.
    """
    _write(folder, update, tensors, json_files.encode(metadata, exact=True))


def load_latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest undamaged checkpoint, and a warning for every newer, damaged one.

    Changes nothing on disk: any number of processes may call it at once.

    Raises:
        UsageError: The newest one was written by an older version of gptft.
    """
    warnings: list[str] = []
    for path in reversed(_list_checkpoints(folder)):
        try:
            return load_checkpoint(path), warnings
        except UsageError as error:
            _refuse_old_format(path)
            warnings.append(f"{error.headline}; this checkpoint is not used")
    return None, warnings


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint. Raises UsageError where a file is missing or damaged."""
    manifest = read_manifest(path / MANIFEST, FORMAT)
    if manifest.files.keys() != {TENSORS, METADATA}:
        raise UsageError("damaged: it lists other files", where=str(path / MANIFEST))
    verify_files(path, manifest)
    content = files.read_regular_file(path / METADATA)
    metadata = json_files.decode(content, str(path / METADATA))
    if not isinstance(metadata, dict):
        raise UsageError("damaged: it is not an object", where=str(path / METADATA))
    return Checkpoint(read_tensors(path / TENSORS), metadata, path)


def _refuse_old_format(path: Path) -> None:
    try:
        manifest = files.read_regular_file(path / MANIFEST)
    except UsageError:
        return
    if _OLD_FORMAT.encode() in manifest:
        raise UsageError(
            "this checkpoint was saved by an older version of gptft",
            where=str(path),
            cure="Finish the run with that version, or start it again with --overwrite.",
        )


def finish_interrupted_saves(folder: Path) -> None:
    """Puts a checkpoint back that was being replaced when its process was killed."""
    with files.explain_os_errors(folder):
        for replaced in list(folder.glob("update-*.old")):
            files.finish_replacement(replaced.with_suffix(""))


class CheckpointWriter:
    """Saves checkpoints in the background.

    `save` copies the tensors and returns; training goes on while a thread writes. The copies keep
    their memory from one save to the next, because to allocate fresh memory is far slower. When a
    save fails, the next call raises its UsageError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._copies: dict[str, Tensor] = {}
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def save(self, update: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """As `save_checkpoint`, after waiting for the save before this one."""
        self.wait()
        encoded = json_files.encode(metadata, exact=True)
        _check_disk_space(self.folder, tensors, encoded)
        self._copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        # A daemon: when the user interrupts the program twice, it does not wait for a slow disk.
        self._thread = Thread(
            target=self._run, args=(update, self._copies, encoded), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return copy.copy_(tensor.detach())

    def _run(self, update: int, tensors: Mapping[str, Tensor], metadata: bytes) -> None:
        try:
            _write(self.folder, update, tensors, metadata)
        except Exception as error:
            self._error = error

    def poll(self) -> None:
        """Raises the error of a save that has failed; does not wait."""
        if self._thread and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on the disk; raises its error if it failed."""
        if self._thread:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error:
            raise error

    def close(self, wait: bool = True) -> None:
        """Waits for the last save and frees the copies.

        Without `wait` the save goes on until the process ends; if that is too early, the
        checkpoint before it stays the newest.
        """
        try:
            if wait:
                self.wait()
        finally:
            self._copies = {}


def _check_disk_space(folder: Path, tensors: Mapping[str, Tensor], metadata: bytes) -> None:
    size = sum(tensor.nbytes for tensor in tensors.values())
    files.check_disk_space(folder, size + len(metadata) + 500 * len(tensors) + 2**16)


def _write(folder: Path, update: int, tensors: Mapping[str, Tensor], metadata: bytes) -> None:
    path = folder / f"update-{update:08d}"
    _check_disk_space(folder, tensors, metadata)
    with files.replace_folder(path) as partial:
        save_tensors(partial / TENSORS, tensors)
        files.write_atomically(partial / METADATA, metadata)
        records = {name: record_file(partial / name) for name in (TENSORS, METADATA)}
        write_manifest(partial / MANIFEST, Manifest(FORMAT, records))
    _delete_all_but(_list_checkpoints(folder, update)[-KEEP:], folder)


def _list_checkpoints(folder: Path, last: int | None = None) -> list[Path]:
    """Checkpoints up to an update, from the oldest to the newest."""
    with files.explain_os_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    updates = {int(match[1]): match[0] for match in map(_NAME.fullmatch, names) if match}
    return [folder / updates[n] for n in sorted(updates) if last is None or n <= last]


def _delete_all_but(kept: list[Path], folder: Path) -> None:
    """Deletes other checkpoints, and what interrupted saves left."""
    with files.explain_os_errors(folder):
        for path in list(folder.iterdir()):
            if path not in kept and _NAME.fullmatch(path.name.partition(".")[0]):
                files.remove(path)
