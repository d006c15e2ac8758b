"""Where a task comes from: a shipped recipe, a YAML file, or a Task written in Python."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetune.cli.recipe_options import Changes
from finetune.recipe import loading as recipe_files
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig
from task_formats import Format, Task, UsageError, suggest

_LOCAL = ("data.path", "base.path")
"""Values that may name a folder: said on the command line, it is seen from the current one."""


class TaskSource(NamedTuple):
    """A recipe with its overrides, the name it goes by, and the Task where Python wrote it."""

    name: str
    recipe: Recipe
    task: Task | None


def find(text: str, changes: Changes) -> TaskSource:
    """The task a user means; UsageError names the nearest one where there is none."""
    changes = {key: seen_from_here(key, value) for key, value in changes.items()}
    module, colon, name = text.rpartition(":")
    if colon and not Path(text).exists() and not Path(module).is_absolute():
        task = import_task(module, name)
        recipe = recipe_files.override_recipe(recipe_of(task), changes)
        return TaskSource(name, _place_files(recipe, changes), task)
    recipe = recipe_files.load_recipe(text, changes)
    return TaskSource(Path(text).stem, _place_files(recipe, changes), None)


def _place_files(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with whole paths for files of the current folder: it may be used from others."""
    files = {key: value for key, value in changes.items() if key.startswith("data.")}
    if recipe.data.path is not None:
        return recipe
    whole = {
        key: str(Path(value).expanduser().resolve())
        for key, value in files.items()
        if isinstance(value, str) and Path(value).expanduser().is_file()
    }
    return recipe_files.override_recipe(recipe, whole)


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
        cure = suggest(name, names) if names else "It holds no task_formats.Task at all."
        raise UsageError(f"no {name!r} in {found.__file__}", cure=cure)
    if not isinstance(task, Task):
        what = f"{module}:{name} is of type {type(task).__name__}, not a task_formats.Task"
        raise UsageError(what, cure=f"Tasks there: {', '.join(names) or 'none'}.")
    return task


def recipe_of(task: Task) -> Recipe:
    """A recipe around a Task, with the paper's values; the data are named by overrides."""
    return Recipe(task=TaskConfig.of(task))


def seen_from_here(key: str, value: Any) -> Any:
    """The value of an override; where it names a folder that is there, its whole path."""
    if key in _LOCAL and isinstance(value, str) and Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    return value


def split_of(data: DataConfig, name: str) -> str:
    """The split or file that a name stands for: train, evaluate, predict, or an extra one.

    Raises UsageError where the recipe has none, or where the name can be neither split nor file.
    """
    roles = {"train": data.train, "evaluate": data.evaluate, "predict": data.predict}
    found = roles[name] if name in roles else data.extra.get(name, name)
    if found is None:
        raise UsageError(f"the recipe has no data.{name}", cure=f"Name it: --set data.{name}=FILE.")
    known = {role: said for role, said in {**roles, **data.extra}.items() if said}
    if data.path is None and found not in known.values() and not Path(found).exists():
        raise UsageError(f"neither a split nor a file: {name!r}", cure=suggest(name, known))
    return found


def kind(recipe: Recipe) -> str:
    """The name of a recipe's format, for tables."""
    found = recipe.task.format
    if isinstance(found, str):
        return found
    return "multiple_choice" if Format(found.views).chooses else "custom views"


def label_names(part: TaskConfig) -> str:
    """The labels of a task in a few words."""
    if part.range:
        return f"{part.range[0]:g} to {part.range[1]:g}"
    labels = part.labels or ()
    names = labels.values() if isinstance(labels, Mapping) else labels
    return ", ".join(dict.fromkeys(names))
