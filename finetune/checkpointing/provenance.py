"""What a run depends on besides its recipe: versions, base and data; and what of it has changed."""

import importlib.metadata
import platform
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.hub import cached_file

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
    """Identifies the base of a run, which the recipe names `path`, by its content.

    Returns:
        SHA-256 of weights, configuration and tokenizer, the same for a copy, a folder of links and
        a commit of the hub. Empty where the cache of the hub does not have the files. Under
        "weights", the SHA-256 of a GGUF file, which contains all three.
    """
    if file := find_gguf_file(path):
        return {WEIGHTS: hash_gguf(file)}
    folder = _find_files(path, decoder)
    if folder is None:
        return {}
    return {name: _hash_files(folder, patterns) for name, patterns in _BASE_FILES.items()}


def _find_files(path: str, decoder: nn.Module) -> Path | None:
    """The folder of a base, in the cache if it is from the hub."""
    folder = Path(find_base(path))
    if folder.is_dir():
        return folder
    commit = getattr(getattr(decoder, "config", None), "_commit_hash", None)
    try:
        cached = cached_file(path, "config.json", revision=commit, local_files_only=True)
    except OSError:
        return None
    return Path(cached).parent if cached else None


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    # In the order of their names in this folder; links are followed: the cache of the hub consists
    # of them.
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    hashes = (files.hash_file(path.resolve()) for path in paths)
    return sha256("".join(hashes).encode()).hexdigest()


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


def check_same_content(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises UsageError where base, training rows or evaluation rows have changed.

    Only contents are compared: files may have been moved, copied or renamed.
    """
    before, now = old.get("base", {}), new["base"]
    if changed := [part for part in before if part in now and before[part] != now[part]]:
        raise UsageError(
            f"this is not the base that the run began with: its {' and '.join(changed)} changed",
            where="base.path",
            cure="Name the old one with --base, or train again with --overwrite.",
        )
    for split in ("train", "evaluate"):
        before, now = (
            tuple(provenance.get(kind, {}).get(split) for kind in ("data", "rows"))
            for provenance in (old, new)
        )
        if before != now:
            counts = f"{_count_rows(before[1])} then, {_count_rows(now[1])} now"
            raise UsageError(
                f"these are not the rows that the run began with ({counts})",
                where=f"data.{split}",
                cure="Restore the file and data.limit, or train again with --overwrite.",
            )


def _count_rows(number: int | None) -> str:
    return "none" if number is None else f"{number:,} rows"
