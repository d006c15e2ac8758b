"""Checkpoints of a run: everything that resuming needs, verified when it is read.

    checkpoints/update-00000120/
        tensors.safetensors     weights and optimizer moments, bit for bit
        metadata.json           everything else, floats exact
        manifest.json           size and SHA-256 of both; written last

A checkpoint is written under a temporary name and renamed when it is on the disk. At least the
newest two are kept while a run trains: should one be damaged, there is the one before it.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.distributed.fsdp import gather_tensor, reshard, shard_tensor
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

_NAMES = "update-" + 8 * "[0-9]"
_STATE = (
    "exp_avg", "exp_avg_sq", "row_var", "col_var", "variance", "step",
    "state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2",
)  # fmt: skip
"""What AdamW, Adafactor and bitsandbytes' AdamW in 8 bits keep for a parameter."""
_BLOCK = 256
"""Weights that share a scale in 8 bits, and values of 8 bits."""


class Checkpoint(NamedTuple):
    """What a run needs to resume, as it was saved."""

    tensors: dict[str, Tensor]
    """On the CPU, in their own memory."""
    metadata: dict[str, Any]
    path: Path


def save_checkpoint(
    folder: Path,
    update: int,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    keep: int = KEEP,
) -> None:
    """Writes the checkpoint of an update and deletes all but the newest ones up to this update.

    Later ones are deleted too: they belong to updates that are about to be repeated. Only one
    process may write at a time.

    Raises:
        UsageError: The disk is full, read-only or forbidden; earlier checkpoints are unharmed.
    """
    path = folder / f"update-{update:08d}"
    with files.replace_folder(path) as partial:
        save_tensors(partial / TENSORS, tensors)
        files.write_atomically(partial / METADATA, json_files.encode(metadata, exact=True))
        records = {name: record_file(partial / name) for name in (TENSORS, METADATA)}
        write_manifest(partial / MANIFEST, Manifest(FORMAT, records))
    saved = sorted(folder.glob(_NAMES))
    kept = [other for other in saved if other <= path][-max(keep, KEEP) :]
    for other in [*saved, *folder.glob(f"{_NAMES}.*")]:
        if other not in kept:
            files.remove(other)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Deletes all but the newest checkpoints of a finished run."""
    for path in sorted(folder.glob(_NAMES), reverse=True)[keep:]:
        files.remove(path)


def load_latest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest undamaged checkpoint, and a warning for every newer, damaged one.

    Changes nothing on disk: any number of processes may call it at once.

    Raises:
        UsageError: The checkpoints have the format of an older version.
    """
    if any(folder.glob("update-*/facts.json")):
        raise UsageError(
            "an older version of gptft saved these checkpoints, and this one cannot read them",
            where=str(folder),
            cure="Finish the run with that version, or start over with --overwrite.",
        )
    warnings: list[str] = []
    for path in sorted(folder.glob(_NAMES), reverse=True):
        try:
            return load_checkpoint(path), warnings
        except UsageError as error:
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
    return Checkpoint(read_tensors(path / TENSORS), metadata, path)


def finish_interrupted_saves(folder: Path) -> None:
    """Puts a checkpoint back that was being replaced when its process was killed."""
    for replaced in list(folder.glob("update-*.old")):
        files.finish_replacement(replaced.with_suffix(""))


class CheckpointWriter:
    """Saves checkpoints in the background.

    `save` copies the tensors and returns; training goes on while a thread writes. The copies keep
    their memory from one save to the next, because to allocate fresh memory is far slower. When a
    save fails, the next call raises its UsageError. `keep` is the number of the newest that stay.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.keep = folder, KEEP
        self._copies: dict[str, Tensor] = {}
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def save(self, update: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """As `save_checkpoint`, after waiting for the save before this one."""
        self.wait()
        self._copies = {name: self._copy(name, tensor) for name, tensor in tensors.items()}
        arguments = (update, self._copies, copy.deepcopy(metadata), self.keep)
        # A daemon: when the user interrupts the program twice, it does not wait for a slow disk.
        self._thread = Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        reused = self._copies.get(name)
        if reused is None or reused.shape != tensor.shape or reused.dtype != tensor.dtype:
            reused = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return reused.copy_(tensor.detach())

    def _run(self, *arguments: Any) -> None:
        try:
            save_checkpoint(self.folder, *arguments)
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


# The tensors of a checkpoint.


def capture_state(model: nn.Module, optimizer: Optimizer, keep: bool = True) -> dict[str, Tensor]:
    """Returns every trained weight with its moments. Frozen weights are read from the base again.

    All processes call it together.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer.
        keep: Whether this process needs the tensors; sharded ones are gathered where it is True.

    Returns:
        "weight.NAME" for each parameter, and for AdamW "exp_avg.NAME", "exp_avg_sq.NAME" and
        "step.NAME"; the states of other optimizers have other names.
    """
    reshard(model)
    tensors = {}
    for name, parameter in _trained_parameters(model).items():
        state = {"weight": parameter.detach(), **optimizer.state.get(parameter, {})}
        for kind in ("weight", *_STATE):
            if kind in state:
                value = state[kind]
                if isinstance(value, int):  # bitsandbytes counts steps so.
                    value = torch.tensor(float(value))
                tensors[f"{kind}.{name}"] = gather_tensor(value, keep)
    return tensors


@torch.no_grad()
def restore_state(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores captured tensors, bit for bit. Raises ValueError where they are another model's."""
    parameters = _trained_parameters(model)
    saved = {name for name in tensors if name.startswith("weight.")}
    if different := sorted(saved.symmetric_difference(f"weight.{name}" for name in parameters)):
        raise ValueError(f"the checkpoint holds other weights: {different[:3]}")
    for name, tensor in tensors.items():
        kind, _, parameter_name = name.partition(".")
        parameter = parameters[parameter_name]
        expected = _expected_shape(kind, parameter.shape)
        # `copy_` would broadcast a smaller tensor, and optimizers do not check their state.
        is_valid = tensor.is_floating_point() or kind in ("state1", "state2")
        if tensor.shape != expected or not is_valid:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected)}")
        if kind == "weight":
            parameter.copy_(shard_tensor(tensor, parameter))
        elif kind == "step" and f"state1.{parameter_name}" in tensors:
            optimizer.state[parameter][kind] = int(tensor)
        else:
            is_whole = tensor.shape == parameter.shape
            value = shard_tensor(tensor, parameter) if is_whole and tensor.dim() else tensor
            # Adafactor counts steps on the CPU.
            stays = kind == "step" and not optimizer.defaults.get("fused")
            optimizer.state[parameter][kind] = value if stays else value.to(parameter.device)


def _expected_shape(kind: str, shape: torch.Size) -> torch.Size:
    """The shape of an optimizer's tensor for a parameter of this shape."""
    if kind == "step":
        return torch.Size()
    if kind.startswith("absmax"):
        return torch.Size((math.ceil(shape.numel() / _BLOCK),))
    if kind.startswith("qmap"):
        return torch.Size((_BLOCK,))
    if kind == "row_var":
        return torch.Size((*shape[:-1], 1))
    return torch.Size((*shape[:-2], 1, shape[-1])) if kind == "col_var" else shape


def _trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
