"""Finding the files of a split in a local folder, in a known layout or simply by their names."""

import glob
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from finetune.data.known_datasets import (
    ANY,
    COLLECTIONS,
    KNOWN_DATASETS,
    SPLITS,
    KnownDataset,
    normalize_name,
)
from finetune.data.readers.files import FORMATS, FileRows, detect_format
from finetune.data.rows import ReadOptions
from task_formats import UsageError

_SHARDS = "{split}-*-of-*.parquet"


def find_split_files(
    folder: Path, name: str | None, split: str, *, below: bool = False
) -> FileRows:
    """The rows of a split in a folder: a data set's own, or one that holds several.

    `name` is the configuration of the hub's data set, by which a layout is known; without it
    the folder's name tells. With `below` the folder itself is not looked at, only those in it.
    Raises UsageError that lists what is there.
    """
    layouts = _known_layouts(folder, name, below)
    known = [(layout, home) for layout in layouts for home in _homes(folder, layout.folders, below)]
    for layout, home in known:
        if files := _layout_files(home, layout, split):
            return FileRows(files, layout.options)
    homes = _homes(folder, (normalize_name(name or ""),), below)
    plain = [inner for home in homes for inner in (home, *_children(home, ("data",)))]
    for home in plain:
        if files := _plain_files(home, split):
            return FileRows(files, ReadOptions(detect_format(files[0])))
    nearest = [home for _, home in known] + plain
    what = f"no file of a split {split!r}" + (f" of {name}" if name else "")
    raise UsageError(what, where=str(folder), cure=_list(nearest[0] if nearest else folder))


def _known_layouts(folder: Path, name: str | None, below: bool) -> list[KnownDataset]:
    """The layouts a folder may have; UsageError where it is another data set's own."""
    called = normalize_name(folder.resolve().name)
    own = [layout for layout in KNOWN_DATASETS if called in layout.folders]
    if name is None:
        return own
    wanted = [layout for layout in KNOWN_DATASETS if normalize_name(name) in layout.names]
    titles = {layout.title for layout in wanted}
    if own and wanted and not below and not titles.intersection(layout.title for layout in own):
        raise UsageError(
            f"this folder holds {own[0].title}, and the recipe reads {wanted[0].title}",
            where=str(folder),
            cure="Give the folder of the recipe's data set, or the one that holds both.",
        )
    return wanted


def _homes(folder: Path, names: Sequence[str], below: bool) -> list[Path]:
    """Folders of these names inside a folder or its collections, then the folder itself."""
    places = (folder, *_children(folder, COLLECTIONS))
    inner = [child for place in places for child in _children(place, names)]
    return inner if below else [*inner, folder]


def _children(folder: Path, names: Sequence[str]) -> list[Path]:
    return [
        path for path in _listed(folder) if normalize_name(path.name) in names and path.is_dir()
    ]


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, 2.txt before 10.txt."""

    def natural(path: Path) -> tuple[int, str]:
        return (int(path.stem) if path.stem.isdecimal() else -1, path.name)

    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(folder)) from None
    return sorted(found, key=natural)


def _layout_files(home: Path, layout: KnownDataset, split: str) -> tuple[Path, ...]:
    for pattern in layout.files.get(split, layout.files.get(ANY, ())):
        for word in _words(split):
            found = _match(home, pattern.format(split=glob.escape(word)))
            if found:
                return found if layout.many else _single(found, home)
    named = _match(home, glob.escape(split))
    return tuple(path for path in named if path.is_file())


def _plain_files(home: Path, split: str) -> tuple[Path, ...]:
    """The file that bears the split's name, or is it; or the shards of a hub's Parquet copy."""
    named = [path for path in _match(home, glob.escape(split)) if path.is_file()]
    endings = [ending + packed for ending in FORMATS for packed in ("", ".gz")]
    patterns = [glob.escape(word) + ending for word in _words(split) for ending in endings]
    found = named or [path for pattern in patterns for path in _match(home, pattern)]
    if found:
        return _single(found, home)
    return _match(home, _SHARDS.format(split=glob.escape(split)))


def _words(split: str) -> tuple[str, ...]:
    """The names a split's file may have: validation_matched may be dev_matched.

    >>> _words("validation_matched")[:2]
    ('validation_matched', 'dev_matched')
    """
    for word, others in SPLITS.items():
        if split == word or split.startswith(f"{word}_"):
            return tuple(other + split.removeprefix(word) for other in others)
    return (split,)


def _match(home: Path, pattern: str) -> tuple[Path, ...]:
    """Paths below a folder that match a pattern, part by part, whatever their case."""
    found = [home]
    for part in pattern.lower().split("/"):
        folders = [path for path in found if path.is_dir()]
        below = [path for folder in folders for path in _listed(folder)]
        found = [path for path in below if fnmatch(path.name.lower(), part)]
    return tuple(found)


def _single(found: Sequence[Path], home: Path) -> tuple[Path, ...]:
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(
            f"several files for one split: {names}",
            where=str(home),
            cure="Keep one of them there, or name the file in the recipe's data.",
        )
    return tuple(found)


def _list(home: Path) -> str:
    names = [f"{path.name}/" if path.is_dir() else path.name for path in _listed(home)]
    listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
    return f"In {str(home)!r} there is {listed or 'nothing'}."
