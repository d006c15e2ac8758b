"""Rows of the hub's data sets and of their saved copies: the one door to `datasets`."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.network import hub_answers
from finetune.data.rows import RowLocation, Scanned, raise_bad_rows
from task_formats import Row, UsageError, suggest

_BATCH = 1000
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubRows:
    """The rows of one split, memory-mapped from the cache of `datasets`."""

    origin: str
    table: Any

    def scan(self) -> Iterator[Scanned]:
        """All rows in order."""
        number = 0
        for batch in self.table.with_format("arrow").iter(batch_size=_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield RowLocation(self.origin, number, "row"), row

    def __iter__(self) -> Iterator[tuple[RowLocation, Row]]:
        return raise_bad_rows(self.scan())

    def fingerprint(self) -> str:
        """A sha256 over columns and rows, whatever the files they came in."""
        digest = hashlib.sha256(repr(self.table.features).encode())
        for batch in self.table.with_format("arrow").iter(batch_size=_BATCH):
            for row in batch.to_pylist():
                digest.update(repr(row).encode(errors="surrogatepass"))
        return digest.hexdigest()


def open_hub(path: str, name: str | None, split: str, revision: str | None) -> HubRows:
    """A split of a hub's data set, from the cache where the hub is out of reach.

    Nothing is streamed from the network: a run reads its rows several times, and the copy in
    the cache serves the next run without a network. Raises UsageError that names the cure.
    """
    # Half of a second and more, which only those who read from the hub should wait.
    import datasets

    origin = f"{path} ({name}), {split}" if name else f"{path}, {split}"
    with _without_waiting() as reached:
        try:
            table = datasets.load_dataset(path, name, split=split, revision=revision)
        except Exception as error:
            # It may be any error of several libraries; a misspelt folder is asked of a hub, too.
            missing = "" if Path(path).exists() else f"there is no folder {path!r} here, and "
            raise UsageError(
                f"{missing}the data set cannot be loaded: {_first_line(error)}",
                where=origin,
                cure=_cure(reached),
            ) from error
    if not reached and revision and _is_other(table, revision):
        what = f"the cache holds another revision than {revision}"
        raise UsageError(what, where=origin, cure=_cure(reached))
    return HubRows(origin, table)


def is_saved(folder: Path) -> bool:
    """True for a folder that `save_to_disk` wrote."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_saved(folder: Path, split: str) -> HubRows:
    """A split of a data set that `save_to_disk` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        what = f"the saved data set cannot be read: {_first_line(error)}"
        raise UsageError(what, where=str(folder), cure="Save it anew.") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UsageError(f"no split {split!r}", where=str(folder), cure=suggest(split, saved))
        saved = saved[split]
    return HubRows(f"{folder}, {split}", saved)


@contextmanager
def _without_waiting() -> Iterator[bool]:
    """Keeps the hub's client from trying again and again where there is no network."""
    import datasets
    import huggingface_hub.constants

    if huggingface_hub.constants.HF_HUB_OFFLINE or hub_answers():
        yield not huggingface_hub.constants.HF_HUB_OFFLINE
        return
    before = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield False
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _is_other(table: Any, revision: str) -> bool:
    """True where a commit was asked for, and the cached files, named by theirs, are another's."""
    folders = {Path(file["filename"]).parent.name for file in table.cache_files}
    return bool(_COMMIT.fullmatch(revision)) and folders != {revision}


def _cure(reached: bool) -> str:
    if reached:
        return "Look at data.path, data.name, data.revision and the split, or give --data DIR."
    return (
        "The hub is out of reach, and the cache does not have it. Give a local copy with "
        "--data DIR, or set HF_HOME to a cache that has it."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
