"""What a run depends on besides its recipe: versions, base and data; and what of it has changed."""

import importlib.metadata
import platform
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from finetune.models.gguf_files import find_gguf_file, hash_gguf
from finetune.models.pretrained import find_base
from finetune.storage import files
from task_formats import UsageError

_PACKAGES = (
    "gptft", "torch", "transformers", "tokenizers", "accelerate", "numpy", "safetensors", "pyarrow",
)  # fmt: skip
WEIGHTS = "weights"
_BASE_FILES = {
    WEIGHTS: ("*.safetensors",),
    "config": ("config.json",),
    "tokenizer": (
        "token*.json", "vocab*", "merges.txt", "special_*.json", "added_*.json", "*.model",
    ),
}  # fmt: skip
"""Patterns of the files that make up each part of a base."""


def fingerprint_base(path: str, decoder: nn.Module) -> dict[str, str]:
    """Identifies the base of a run, which the recipe names `path`.

    Returns:
        SHA-256 of the weights, configuration and tokenizer of a local base. Under "weights", the
        SHA-256 of a GGUF file, which contains all three, or the commit of a base from the hub.
    """
    if file := find_gguf_file(path):
        return {WEIGHTS: hash_gguf(file)}
    folder = Path(find_base(path))
    if folder.is_dir():
        return {name: _hash_files(folder, patterns) for name, patterns in _BASE_FILES.items()}
    commit = getattr(getattr(decoder, "config", None), "_commit_hash", None)
    return {WEIGHTS: str(commit)} if commit else {}


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    # Links are followed: the cache of the hub consists of them.
    paths = sorted({path.resolve() for pattern in patterns for path in folder.glob(pattern)})
    return sha256("".join(map(files.hash_file, paths)).encode()).hexdigest()


def collect_provenance(
    base: Mapping[str, str], data: Mapping[str, str], rows: Mapping[str, int]
) -> dict[str, Any]:
    """Returns what results and checkpoints record: versions, fingerprints and numbers of rows."""
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "base": dict(base),
        "data": dict(data),
        "rows": dict(rows),
    }


def _version(package: str) -> str | None:
    """None for a package that is imported from a folder without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for everything that differs from when the checkpoint was saved."""
    return [
        f"resumed with other {kind}: {name} was {before}, is {new[kind].get(name)}"
        for kind in new
        for name, before in old.get(kind, {}).items()
        if new[kind].get(name) != before
    ]


def check_frozen(model: nn.Module, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises UsageError where frozen weights, which no checkpoint holds, have changed."""
    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    before, now = (provenance.get("base", {}).get(WEIGHTS) for provenance in (old, new))
    if frozen and before and before != now:
        raise UsageError(
            "the weights of the base have changed, and the checkpoint fits the old ones only",
            where="base.path",
            cure="Restore the old files, or train again with --overwrite.",
        )
