"""Data sets of the Hugging Face hub and copies of them that `save_to_disk` wrote."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune.data.readers.text import first_line
from finetune.data.rows import LocatedRow, RowLocation, Rows
from finetune.progress import Progress
from task_formats import UsageError, suggest

_BATCH = 1000
_COMMIT = re.compile(r"[0-9a-f]{40}")


@cache
def is_hub_reachable() -> bool:
    """Whether the hub answers one request; False in offline mode (HF_HUB_OFFLINE).

    huggingface_hub repeats failed requests for 23 seconds and has no setting for that, so callers
    read from its cache only where this is False.
    """
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception:  # The types depend on the HTTP library of huggingface_hub.
        return False
    return True


def hub_cache() -> Path:
    """The folder of bases and data sets that were downloaded from the hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def download_files(repository: str, names: Iterable[str], revision: str | None) -> None:
    """Downloads files of a model into the cache, and counts their bytes as progress."""
    from huggingface_hub import hf_hub_download

    for name in names:
        hf_hub_download(repository, name, revision=revision, tqdm_class=_make_bar(name))


def _make_bar(name: str) -> type[Any]:
    """A class of bars for huggingface_hub that draw nothing themselves."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "disable": True})
            total, before = options.get("total"), options.get("initial") or 0
            self._progress = Progress(f"downloading {name}", total, "byte", before)
            self._progress.__enter__()

        def update(self, n: float | None = 1) -> None:
            self._progress.advance(int(n or 0))

        def close(self) -> None:
            if not self._progress.is_finished:
                self._progress.__exit__()
            super().close()

    return Bar


@dataclass(frozen=True)
class HubRows(Rows):
    """The rows of one split, memory-mapped from the cache of `datasets`."""

    name: str
    table: Any
    """A datasets.Dataset."""

    @property
    def origin(self) -> str:
        """The data set and the split."""
        return self.name

    def read(self) -> Iterator[LocatedRow]:
        """Yields all rows in order."""
        for number, row in enumerate(self._rows(), start=1):
            yield RowLocation(self.name, number, "row"), row

    def estimate_count(self) -> int:
        """The number of rows."""
        return len(self.table)

    def class_names(self) -> dict[str, list[str]]:
        """Returns the names of the columns of the type ClassLabel, and of lists of it."""
        found = {}
        for name, feature in self.table.features.items():
            inner = getattr(feature, "feature", feature)
            if names := getattr(inner, "names", None):
                found[name] = list(names)
        return found

    def fingerprint(self) -> str:
        """SHA-256 over columns and rows, however they are split into files."""
        digest = hashlib.sha256(repr(self.table.features).encode())
        for row in self._rows():
            digest.update(repr(row).encode(errors="surrogatepass"))
        return digest.hexdigest()

    def _rows(self) -> Iterator[dict[str, Any]]:
        for batch in self.table.with_format("arrow").iter(batch_size=_BATCH):
            yield from batch.to_pylist()


def open_hub(path: str, name: str | None, split: str, revision: str | None) -> HubRows:
    """Opens a split of a data set of the hub; downloads it unless it is in the cache.

    The revision is a branch, a tag or a commit; None is the main branch.

    Raises:
        UsageError: It cannot be loaded, or the hub is unreachable and the cache does not have it.
    """
    # Slow to import (over half a second), so only who reads from the hub waits for it.
    import datasets
    from huggingface_hub import constants

    origin = f"{path} ({name}), {split}" if name else f"{path}, {split}"
    cure = "Check data.path, data.name, data.revision and the split, or give --data DIR."
    if not is_hub_reachable():
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        cure = (
            "The hub is unreachable and the cache does not have the data set. Give a local copy "
            "with --data DIR, or set HF_HOME to a cache that has it."
        )
    try:
        table = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # Of many types, from several libraries.
        what = f"there is no folder {path!r} here, and the data set cannot be loaded"
        raise UsageError(f"{what}: {first_line(error)}", where=origin, cure=cure) from error
    # Offline, `datasets` takes any revision that is in the cache, in a folder named by the commit.
    commits = {Path(file["filename"]).parent.name for file in table.cache_files}
    if not is_hub_reachable() and _COMMIT.fullmatch(revision or "") and commits != {revision}:
        what = f"the cache holds another revision than {revision}"
        raise UsageError(what, where=origin, cure=cure)
    return HubRows(origin, table)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def list_saved(folder: Path) -> list[str]:
    """Names of the splits in a folder of `save_to_disk`; "train" for a data set without splits."""
    if not (folder / "dataset_dict.json").is_file():
        return ["train"]
    return [path.name for path in sorted(folder.iterdir()) if (path / "state.json").is_file()]


def open_saved(folder: Path, split: str) -> HubRows:
    """Opens a split of a data set that `save_to_disk` wrote; UsageError if that fails."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        what = f"the saved data set cannot be read: {first_line(error)}"
        raise UsageError(what, where=str(folder), cure="Save it again.") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise UsageError(f"no split {split!r}", where=str(folder), cure=suggest(split, saved))
        saved = saved[split]
    return HubRows(f"{folder}, {split}", saved)
