"""Where a base comes from, as fingerprints: what a run depends on and its states do not hold."""

from hashlib import sha256
from pathlib import Path

from torch import nn

from finetune.models.base_paths import find_base
from finetune.storage import files

WEIGHTS = "weights"
_PARTS = {
    WEIGHTS: ("*.safetensors",),
    "config": ("config.json",),
    "tokenizer": (
        "token*.json",
        "vocab*",
        "merges.txt",
        "special_*.json",
        "added_*.json",
        "*.model",
    ),
}


def fingerprint_base(path: str, decoder: nn.Module) -> dict[str, str]:
    """SHA-256 of the parts of a base in a folder; of one from the hub, its commit."""
    folder = Path(find_base(path))
    if folder.is_dir():
        return {name: _hash(folder, patterns) for name, patterns in _PARTS.items()}
    commit = getattr(getattr(decoder, "config", None), "_commit_hash", None)
    return {WEIGHTS: str(commit)} if commit else {}


def _hash(folder: Path, patterns: tuple[str, ...]) -> str:
    # Links are followed: a hub's cache is made of them.
    found = sorted({path.resolve() for pattern in patterns for path in folder.glob(pattern)})
    return sha256("".join(map(files.hash_file, found)).encode()).hexdigest()
