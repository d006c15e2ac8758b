"""What a run was made with besides its recipe: versions, base and data, and what has changed."""

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from torch import nn

from finetune.models.fingerprints import WEIGHTS
from finetune.training.job import TrainingJob
from task_formats import UsageError

_PACKAGES = (
    "gptft", "torch", "transformers", "tokenizers", "accelerate", "numpy", "safetensors", "pyarrow",
)  # fmt: skip


def collect_provenance(job: TrainingJob) -> dict[str, Any]:
    """Versions, base and data: what a result depends on besides its recipe."""
    sources = job.sources()
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "base": job.origins(),
        "data": {name: source.fingerprint for name, source in sources.items()},
        "rows": {name: source.rows for name, source in sources.items()},
    }


def _version(package: str) -> str | None:
    """None for a package that is used from a folder without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for everything that is not as it was when the state was saved."""
    return [
        f"resumed with other {kind}: {name} was {before}, is {new[kind].get(name)}"
        for kind in new
        for name, before in old.get(kind, {}).items()
        if new[kind].get(name) != before
    ]


def check_frozen(model: nn.Module, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """UsageError where weights that no state holds are not those that the run began with."""
    frozen = any(not part.requires_grad for part in model.parameters())
    before, now = (made_with.get("base", {}).get(WEIGHTS) for made_with in (old, new))
    if frozen and before and before != now:
        raise UsageError(
            "the base's weights have changed, and what was trained fits the old ones alone",
            where="base.path",
            cure="Put the old files back, or train anew with --overwrite.",
        )
