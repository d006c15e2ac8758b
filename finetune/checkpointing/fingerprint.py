"""Identifies a finished run by its content, without importing torch."""

import hashlib
from pathlib import Path

from finetune.storage import files

_SMALL_FILES = ("head.safetensors", "thresholds.json", "calibration.json", "config.json")


def fingerprint_run(folder: Path | str) -> str:
    """Returns a hash of the recipe and the head, which every training changes.

    Large weights count with their size only. The folder is a run, or a download of what
    `gptft push` uploaded.
    """
    folder = Path(folder)
    model = folder / "model" if (folder / "model").is_dir() else folder
    paths = [folder / "recipe.yaml", *(model / name for name in _SMALL_FILES)]
    hashes = [files.hash_file(path) for path in paths if path.is_file()]
    sizes = [(path.name, path.stat().st_size) for path in sorted(model.glob("*.safetensors"))]
    return hashlib.sha256(repr((hashes, sizes)).encode()).hexdigest()
