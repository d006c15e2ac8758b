"""Finding the rows to predict: a split, files, a folder, or a pattern of file names."""

import glob
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from finetune.data.held_out import open_split
from finetune.data.hub import is_saved, open_saved
from finetune.data.known_datasets import KNOWN_DATASETS, KnownDataset, normalize_name
from finetune.data.readers.files import FORMATS, FileRows, find_ending
from finetune.data.readers.text import describe_folder
from finetune.data.rows import Rows
from finetune.data.sources import SplitNotFoundError, open_rows
from finetune.recipe.schema import DataConfig
from task_formats import Task, UsageError

_FIRST_ROWS = 20
"""Rows that show which columns a file has."""


def open_inputs(
    data: DataConfig,
    task: Task,
    sources: Sequence[str] = (),
    *,
    split: str | None = None,
    format: str | None = None,
) -> list[Rows]:
    """Opens the rows to predict.

    A file has its own columns, or those of the data set's original files, such as MRPC's
    "#1 String": whichever the task can read. A folder holds the split that the recipe predicts, or
    files that are all to be predicted.

    Args:
        data: The data of the recipe.
        task: Says which columns are needed.
        sources: Files, folders, patterns such as `parts/*.csv`, or `-` for standard input; without
            them the split is read from the recipe's data.
        split: A split of the only folder or file of splits, or of the recipe's data. [default:
            data.predict]
        format: The format of the files, which their names tell otherwise.

    Returns:
        The rows of a split; or of every file, in natural order.

    Raises:
        UsageError: There are no such rows.
    """
    if not sources:
        name = split or data.predict
        if name is None:
            cure = "Name a file or a folder, or a split with --split."
            raise UsageError("the recipe has no data.predict", where="data.predict", cure=cure)
        return [open_split(data, task, name)]
    folders = [source for source in sources if Path(source).expanduser().is_dir()]
    if split is not None:
        # A file may hold splits too.
        folders += [name for name in sources if FORMATS.get(find_ending(name)) in ("json", "xlsx")]
    if split is not None and (len(sources) > 1 or not folders):
        cure = "Give one folder, or leave --split out."
        raise UsageError("--split is a part of a folder, not of such a file", cure=cure)
    inputs: list[Rows] = []
    for source in sources:
        if source == "-":
            inputs.append(_open_plain(data, "-", format))
        elif source in folders:
            inputs += _open_folder(data, task, Path(source).expanduser(), split, format)
        else:
            inputs += [_open_file(data, task, path, format) for path in _find_files(source)]
    return inputs


def _find_files(source: str) -> list[Path]:
    """The file of this name, or the files that match this pattern."""
    path = Path(source).expanduser()
    if path.exists() or not set(source) & set("*?["):
        return [path]
    found = filter(Path.is_file, map(Path, glob.glob(str(path), recursive=True)))
    if files := sorted(found, key=_natural_order):
        return files
    raise UsageError("no file matches", where=source, cure=describe_folder(path.parent))


def _open_folder(
    data: DataConfig, task: Task, folder: Path, split: str | None, format: str | None
) -> list[Rows]:
    if is_saved(folder):
        return [open_saved(folder, split or data.predict or "test")]
    name = split or (data.predict if data.path is not None else None)
    missing = None
    if name is not None:
        try:
            return [open_rows(data.model_copy(update={"path": str(folder)}), name)]
        except SplitNotFoundError as error:
            missing = error
    if split is None:
        if files := sorted(_list_rows(folder), key=_natural_order):
            return [_open_file(data, task, path, format) for path in files]
        for layout in find_layouts(data):
            texts = sorted(folder.rglob("*.txt"), key=_natural_order) if layout.sharded else []
            if texts and _has_columns(rows := FileRows((*texts,), layout.options), task):
                return [rows]
    if missing is not None:
        raise missing
    raise UsageError("no files of rows", where=str(folder), cure=describe_folder(folder))


def _list_rows(folder: Path) -> Iterator[Path]:
    """Files below a folder whose endings are those of rows, without hidden ones."""
    for path in folder.rglob("*"):
        ending = find_ending(path)
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if ending in FORMATS and not is_hidden and path.is_file():
            yield path


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece) if piece.isdecimal() else -1, piece) for piece in pieces]


def find_layouts(data: DataConfig) -> list[KnownDataset]:
    """The layouts that the original files of a recipe's data set have."""
    if data.path is None:
        return []
    name, folder = normalize_name(data.name or ""), normalize_name(Path(data.path).name)
    return [known for known in KNOWN_DATASETS if name in known.names or folder in known.folders]


def _open_file(data: DataConfig, task: Task, path: Path, format: str | None) -> Rows:
    """The rows of a file with its own columns or those of the data set's original files."""
    kind = FORMATS.get(find_ending(path))
    given = format or (None if kind else data.format)
    layouts = [] if given else find_layouts(data)
    if not layouts:
        return _open_plain(data, str(path), given)
    readings: list[Rows] = [_open_plain(data, str(path), None)] if kind else []
    for layout in layouts:
        if kind in (None, layout.options.format):
            readings.append(FileRows((path,), layout.options))
    for rows in readings:
        if _has_columns(rows, task):
            return rows
    # Its own message about the missing column, or about the unknown ending.
    return _open_plain(data, str(path), None)


def _open_plain(data: DataConfig, file: str, format: str | None) -> Rows:
    """The rows of a file as the recipe says that files are written."""
    return open_rows(data.model_copy(update={"path": None, "format": format}), file)


def _has_columns(rows: Rows, task: Task) -> bool:
    """Whether the first rows have the columns that the task reads."""
    try:
        return any(not task.missing_columns(row) for _, row in islice(rows, _FIRST_ROWS))
    except UsageError:
        return False
