"""Where a task comes from: a shipped recipe, a YAML file, or a Task written in Python."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune import recipe_files
from finetune.cli.overrides import Changes
from finetune.recipe import CustomFormat, DataPart, Recipe, TaskPart
from task_formats import FORMATS, Format, Range, Task, UsageError, nearest

_LOCAL = ("data.path", "base.path")
"""Values that may name a folder: said on the command line, it is seen from the current one."""


class Source(NamedTuple):
    """A recipe with its overrides, the name it goes by, and the Task where Python wrote it."""

    name: str
    recipe: Recipe
    task: Task | None


def find(text: str, changes: Changes) -> Source:
    """The task a user means; UsageError names the nearest one where there is none."""
    changes = {key: seen_from_here(key, value) for key, value in changes.items()}
    module, colon, name = text.rpartition(":")
    if colon and not Path(text).exists() and not Path(module).is_absolute():
        task = import_task(module, name)
        return Source(name, recipe_files.override(recipe_of(task), changes), task)
    return Source(Path(text).stem, recipe_files.load_recipe(text, changes), None)


def import_task(module: str, name: str) -> Task:
    """The Task object of a Python module; the current folder is looked at first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        cure = f"Run the command in the folder of {module.partition('.')[0]}.py, or install it."
        raise UsageError(f"no Python module {module!r}", where="--task", cure=cure) from error
    names = [key for key, value in vars(found).items() if isinstance(value, Task)]
    task = getattr(found, name, None)
    if task is None:
        raise UsageError(f"no {name!r} in {found.__file__}", cure=nearest(name, names))
    if not isinstance(task, Task):
        kind = type(task).__name__
        raise UsageError(
            f"{module}:{name} is a {kind}, not a task_formats.Task", cure=f"Tasks there: {names}."
        )
    return task


def recipe_of(task: Task) -> Recipe:
    """A recipe around a Task, with the paper's values; the data are named by overrides."""
    named = next((name for name, known in FORMATS.items() if known == task.format), None)
    labels = task.labels
    bounds = (labels.low, labels.high) if isinstance(labels, Range) else None
    part = TaskPart(
        format=named or CustomFormat(views=task.format.views),
        columns={name: _column(column) for name, column in task.columns.items()},
        labels=None if isinstance(labels, Range) else dict(labels.raw),
        range=bounds,
        metrics=task.metrics or (("pearson",) if bounds else ("accuracy",)),
        unlabelled=tuple(sorted(task.unlabelled)),
    )
    return Recipe(task=part)


def _column(column: Any) -> str | tuple[str, ...]:
    return column if isinstance(column, str) else tuple(column)


def seen_from_here(key: str, value: Any) -> Any:
    """The value of an override; where it names a folder that is there, its whole path."""
    if key in _LOCAL and isinstance(value, str) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    return value


def split_of(data: DataPart, name: str) -> str:
    """The split or file that a name stands for: train, evaluate, predict, or an extra one."""
    said = getattr(data, name) if name in ("train", "evaluate", "predict") else name
    if said is None:
        raise UsageError(f"the recipe has no data.{name}", cure=f"Name it: --set data.{name}=FILE.")
    return data.extra.get(said, str(said))


def kind(recipe: Recipe) -> str:
    """The name of a recipe's format, for tables."""
    found = recipe.task.format
    if isinstance(found, str):
        return found
    return "multiple_choice" if Format(found.views).chooses else "custom views"


def label_names(part: TaskPart) -> str:
    """The labels of a task in a few words."""
    if part.range:
        return f"{part.range[0]:g} to {part.range[1]:g}"
    labels = part.labels or ()
    names = labels.values() if isinstance(labels, Mapping) else labels
    return ", ".join(dict.fromkeys(names))
