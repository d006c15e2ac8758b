"""One file of rows parted in two: some to train on, some held out."""

import random
from contextlib import ExitStack
from pathlib import Path

from finetune.data import read_rows, write_rows
from task_formats import UsageError

_SEED = 42


def hold_out(file: Path, part: float, folder: Path) -> tuple[Path, Path]:
    """Writes two files into `folder` and gives their paths; `part` of the rows go to the second.

    Which rows these are depends on their places alone. Raises UsageError where a file is there
    already, or where one of the two would be empty.
    """
    stem, dot, ending = file.name.partition(".")
    train, held = (folder / f"{stem}-{name}{dot}{ending}" for name in ("train", "evaluate"))
    for path in (train, held):
        if path.exists():
            raise UsageError(f"{path} is already there", cure="Remove it, or do not hold out.")
    names: dict[str, None] = {}
    rows = 0
    for _, row in read_rows(file):
        names.update(dict.fromkeys(row))
        rows += 1
    chosen = set(random.Random(_SEED).sample(range(rows), round(part * rows)))
    if not 0 < len(chosen) < rows:
        what = f"{part:g} of {rows} rows leaves a file empty"
        raise UsageError(what, where=str(file), cure="Take a part that gives both files a row.")
    with ExitStack() as stack:
        sinks = [stack.enter_context(write_rows(path, list(names))) for path in (train, held)]
        for index, (_, row) in enumerate(read_rows(file)):
            sinks[index in chosen].write(row)
    return train, held
