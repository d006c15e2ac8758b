"""Finding the rows of a split: a file, a local folder in a known layout or not, or the hub."""

import glob
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune.data.hub import is_saved, list_saved, open_hub, open_saved
from finetune.data.known_datasets import (
    ANY_SPLIT,
    COLLECTIONS,
    KNOWN_DATASETS,
    KnownDataset,
    normalize_name,
    split_words,
)
from finetune.data.readers.excel import list_sheets
from finetune.data.readers.files import FORMATS, FileRows, detect_format, open_file
from finetune.data.readers.json import find_json_splits
from finetune.data.readers.text import as_utf8, check_is_data, describe_folder, open_stream
from finetune.data.rows import ReadOptions, Rows
from finetune.recipe.schema import DataConfig
from finetune.storage.files import explain_os_errors
from task_formats import UsageError

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class SplitNotFoundError(UsageError):
    """A folder has no file of a split."""


def open_rows(data: DataConfig, split: str) -> Rows:
    """Opens the rows of one split.

    Args:
        data: `data.path` is a local folder, a file of splits or a data set of the hub; without it
            the split is a file.
        split: The split as in the recipe; one of another configuration is written `ax/test`.

    Raises:
        UsageError: There is no such split; the message lists what there is.
    """
    options = _file_options(data)
    if data.path is None:
        return open_file(split, format=data.format, **options)
    configuration, _, split = split.rpartition("/")
    name = configuration or data.name
    folder = Path(data.path).expanduser()
    if folder.is_dir():
        for path in (folder / (name or ""), folder):
            if is_saved(path):
                return open_saved(path, split)
        files = _find_split_files(
            folder, name, split, format=data.format, subfolders_only=bool(configuration)
        )
        return replace(files, options=replace(files.options, **options))
    if folder.exists():
        rows = open_file(folder, format=data.format, **options)
        if rows.options.format not in ("json", "xlsx"):
            what = "a file of one split, and data.path (--data) must hold several"
            cure = "Without data.path, the splits themselves can be files."
            raise UsageError(what, where=data.path, cure=cure)
        return replace(rows, options=replace(rows.options, split=split))
    if not _HUB_ID.fullmatch(data.path):
        raise UsageError("no such folder", where=data.path, cure="Correct data.path or --data.")
    return open_hub(data.path, name, split, data.revision)


def list_splits(path: Path, format: str | None = None) -> list[str] | None:
    """Names of the splits in a folder, a JSON file or a workbook; None for a file of rows.

    The sheets of a workbook are splits if one is called train.
    """
    if path.is_dir():
        if is_saved(path):
            return list_saved(path)
        found = []
        for split in ("train", "validation", "test"):
            with suppress(UsageError):
                open_rows(DataConfig(path=str(path), format=format), split)
                found.append(split)
        return found
    kind = detect_format(path, format)
    if kind not in ("json", "xlsx"):
        return None
    with open_stream(path) as stream:
        if kind == "xlsx":
            names = list_sheets(stream, str(path))
            return None if set(names).isdisjoint(split_words("train")) else names
        check_is_data(stream, str(path))
        return find_json_splits(as_utf8(stream, str(path)), str(path)) or None


def _file_options(data: DataConfig) -> dict[str, Any]:
    """How files are written, as far as the recipe says it."""
    given = {name: getattr(data, name) for name in ("delimiter", "encoding", "header")}
    return {name: value for name, value in given.items() if value is not None}


def _find_split_files(
    folder: Path, name: str | None, split: str, *, format: str | None, subfolders_only: bool
) -> FileRows:
    """Finds the files of a split in a folder that holds one data set or several.

    The configuration's name selects a known layout; without one the folder's name does.
    """
    known = [
        (layout, home)
        for layout in _known_layouts(folder, name, subfolders_only)
        for home in _find_homes(folder, layout.folders, subfolders_only)
    ]
    for layout, home in known:
        if files := _layout_files(home, layout, split):
            return FileRows(files, layout.options)
    homes = _find_homes(folder, (normalize_name(name or ""),), subfolders_only)
    plain = [path for home in homes for path in (home, *_subfolders(home, ("data",)))]
    for home in plain:
        if files := _plain_files(home, split):
            return FileRows(files, ReadOptions(detect_format(files[0], format)))
    nearest = next(iter([*(home for _, home in known), *plain]), folder)
    what = f"no file of a split {split!r}" + (f" of {name}" if name else "")
    raise SplitNotFoundError(what, where=str(folder), cure=describe_folder(nearest))


def _known_layouts(folder: Path, name: str | None, subfolders_only: bool) -> list[KnownDataset]:
    """The layouts a folder may have; UsageError if it is the folder of another data set."""
    folder_name = normalize_name(folder.resolve().name)
    own = [layout for layout in KNOWN_DATASETS if folder_name in layout.folders]
    if name is None:
        return own
    wanted = [layout for layout in KNOWN_DATASETS if normalize_name(name) in layout.names]
    if own and wanted and not subfolders_only and not any(layout in own for layout in wanted):
        what = f"this folder holds {own[0].title}, and the recipe reads {wanted[0].title}"
        cure = "Give the folder of the recipe's data set, or the one that holds both."
        raise UsageError(what, where=str(folder), cure=cure)
    return wanted


def _find_homes(folder: Path, names: Sequence[str], subfolders_only: bool) -> list[Path]:
    """Folders of these names inside a folder or its collections, then the folder itself."""
    parents = (folder, *_subfolders(folder, COLLECTIONS))
    inner = [path for parent in parents for path in _subfolders(parent, names)]
    return inner if subfolders_only else [*inner, folder]


def _subfolders(folder: Path, names: Sequence[str]) -> list[Path]:
    paths = [path for path in _listed(folder) if normalize_name(path.name) in names]
    return [path for path in paths if path.is_dir()]


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, 2.txt before 10.txt."""

    def natural(path: Path) -> tuple[int, str]:
        return (int(path.stem) if path.stem.isdecimal() else -1, path.name)

    with explain_os_errors(folder):
        return sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=natural)


def _layout_files(home: Path, layout: KnownDataset, split: str) -> tuple[Path, ...]:
    for pattern in layout.files.get(split, layout.files.get(ANY_SPLIT, ())):
        for word in split_words(split):
            if files := _match(home, pattern.format(split=glob.escape(word))):
                return files if layout.sharded else _single(files, home)
    return _match(home, glob.escape(split))


def _plain_files(home: Path, split: str) -> tuple[Path, ...]:
    """The file that is named by the split or after it, or the shards of a hub's Parquet copy."""
    endings = [ending + compressed for ending in FORMATS for compressed in ("", ".gz")]
    names = [split], [word + ending for word in split_words(split) for ending in endings]
    for candidates in names:
        if files := [path for name in candidates for path in _match(home, glob.escape(name))]:
            return _single(files, home)
    return _match(home, f"{glob.escape(split)}-*-of-*.parquet")


def _match(home: Path, pattern: str) -> tuple[Path, ...]:
    """Files below a folder that match a pattern, part by part, in any case of letters."""
    paths = [home]
    for part in pattern.lower().split("/"):
        children = [path for folder in paths if folder.is_dir() for path in _listed(folder)]
        paths = [path for path in children if fnmatch(path.name.lower(), part)]
    return tuple(path for path in paths if path.is_file())


def _single(files: Sequence[Path], home: Path) -> tuple[Path, ...]:
    if len(files) > 1:
        what = f"several files for one split: {', '.join(path.name for path in files)}"
        cure = "Keep one of them there, or name the file in the recipe's data."
        raise UsageError(what, where=str(home), cure=cure)
    return tuple(files)
