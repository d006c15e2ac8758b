"""Named tensors in a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.storage.files import explain_os_errors
from task_formats import UsageError

_INVALID = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Writes dense tensors, none of which may share memory with another."""
    dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with explain_os_errors(path):
        save_file(dense, path, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns all tensors, on the CPU. Raises UsageError where it is not a safetensors file."""
    try:
        # Cloned: load_file maps the file, which may be deleted while its tensors are in use.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except _INVALID as error:
        raise UsageError(f"not a safetensors file: {error}", where=str(path)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the texts that were saved with tensors. Raises UsageError as `read_tensors` does."""
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except _INVALID as error:
        raise UsageError(f"not a safetensors file: {error}", where=str(path)) from error
