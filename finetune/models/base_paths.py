"""Where a base is, by its name: shipped, in a folder, in a run, or on the hub."""

import os
from importlib.resources import files
from pathlib import Path

from finetune.checkpointing.seals import check_base
from finetune.recipe.schema import BaseConfig
from task_formats import UsageError

SHIPPED_BASES = ("tiny",)


def find_base(path: str) -> str:
    """A shipped base's folder, a local folder or the model of the run in it, or a hub id."""
    if path in SHIPPED_BASES and not Path(path).exists():
        return str(files("finetune") / "shipped" / path)
    if not path or Path(path).expanduser().is_file():
        raise UsageError(
            f"{path} is a file" if path else "no base is named",
            where="base.path",
            cure="Give a folder made by save_pretrained, a hub id such as gpt2, or tiny.",
        )
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or os.sep * 2 in path
    if looks_local and not Path(path).expanduser().is_dir():
        raise UsageError(
            f"no such folder: {path}",
            where="base.path",
            cure="Give a folder made by save_pretrained, a hub id such as gpt2, or tiny.",
        )
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{path} holds adapters for another base",  # which transformers would go and look for
            where="base.path",
            cure="Merge them with peft's merge_and_unload and save the whole model.",
        )
    is_run = (folder / "model" / "config.json").is_file() and not (folder / "config.json").exists()
    return str(folder / "model" if is_run else folder)


def locate_whole(part: BaseConfig) -> str:
    """As `find_base`; UsageError where the base is a model of ours, and not as it was saved."""
    path = find_base(part.path)
    if not part.from_scratch:
        check_base(Path(path))
    return path
