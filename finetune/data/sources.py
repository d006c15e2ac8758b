"""From the recipe's data part to the rows of a split."""

import re
from pathlib import Path

from finetune.data.folders import find_split_files
from finetune.data.hub import is_saved, open_hub, open_saved
from finetune.data.readers.files import open_file
from finetune.data.rows import Rows
from finetune.recipe.schema import DataConfig
from task_formats import UsageError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def open_rows(part: DataConfig, split: str) -> Rows:
    """The rows of one split, named as in the recipe (`part.train`, a value of `part.extra`).

    `part.path` is a local folder or a hub's data set; without it the split is a file. A split of
    another configuration is written `ax/test`.
    Raises UsageError where there is no such split, and lists what there is.
    """
    if part.path is None:
        return open_file(split)
    other, _, split = split.rpartition("/")
    name = other or part.name
    folder = Path(part.path).expanduser()
    if folder.is_dir():
        saved = [home for home in (folder / (name or ""), folder) if is_saved(home)]
        if saved:
            return open_saved(saved[0], split)
        return find_split_files(folder, name, split, below=bool(other))
    if folder.exists():
        raise UsageError(
            "is a file, and data.path (--data) is a folder or a data set of the hub",
            where=part.path,
            cure="Without data.path, the splits themselves can be files.",
        )
    if not _HUB_ID.fullmatch(part.path):
        raise UsageError("no such folder", where=part.path, cure="Correct data.path or --data.")
    return open_hub(part.path, name, split, part.revision)
