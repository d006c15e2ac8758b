"""Finds a task by name: a shipped recipe, a YAML file, or a Task defined in Python."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from finetune.cli.options import Overrides
from finetune.recipe.loading import load_recipe, override_recipe, resolve_paths
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig
from task_formats import Format, Task, UsageError, suggest


class TaskSource(NamedTuple):
    """A recipe with its overrides, its name, and the Task if it is defined in Python."""

    name: str
    recipe: Recipe
    task: Task | None


def find_task(name: str, overrides: Overrides) -> TaskSource:
    """Loads the recipe of a task.

    Args:
        name: A shipped recipe, a YAML file, or module:attribute.
        overrides: Dotted key to value.

    Raises:
        UsageError: There is no such task; the message suggests the nearest name.
    """
    module, colon, attribute = name.rpartition(":")
    if colon and not Path(name).exists() and not Path(module).is_absolute():
        task = import_task(module, attribute)
        recipe = override_recipe(Recipe(task=TaskConfig.from_task(task)), overrides)
        return TaskSource(attribute, resolve_paths(recipe, Path.cwd()), task)
    return TaskSource(Path(name).stem, load_recipe(name, overrides), None)


def find_python_task(name: str | None) -> Task | None:
    """The Task of an option `--task module:attribute`, or None if the option is absent."""
    return find_task(name, {}).task if name else None


def import_task(module: str, attribute: str) -> Task:
    """Imports a Task; modules of the current folder come first.

    Raises:
        UsageError: There is no such module or attribute, or it is not a Task.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        cure = f"Run the command in the folder of {module.partition('.')[0]}.py, or install it."
        raise UsageError(f"no Python module {module!r}", where="--task", cure=cure) from error
    names = [key for key, value in vars(imported).items() if isinstance(value, Task)]
    task = getattr(imported, attribute, None)
    if task is None:
        cure = suggest(attribute, names) if names else "It contains no task_formats.Task."
        raise UsageError(f"no {attribute!r} in {imported.__file__}", cure=cure)
    if not isinstance(task, Task):
        what = f"{module}:{attribute} is of type {type(task).__name__}, not a task_formats.Task"
        raise UsageError(what, cure=f"Tasks there: {', '.join(names) or 'none'}.")
    return task


def find_split(data: DataConfig, name: str) -> str:
    """The split or file for a name: train, evaluate, predict, an extra split, or a file.

    Raises:
        UsageError: The recipe has no such split, or the name is neither a split nor a file.
    """
    roles = {"train": data.train, "evaluate": data.evaluate, "predict": data.predict}
    split = roles[name] if name in roles else data.extra.get(name, name)
    if split is None:
        raise UsageError(f"the recipe has no data.{name}", cure=f"Set it: --set data.{name}=FILE.")
    known = {role: value for role, value in {**roles, **data.extra}.items() if value}
    if data.path is None and split not in known.values() and not Path(split).exists():
        raise UsageError(f"neither a split nor a file: {name!r}", cure=suggest(name, known))
    return split


def name_format(config: TaskConfig) -> str:
    """The name of a task's format, for tables."""
    if isinstance(config.format, str):
        return config.format
    return "multiple_choice" if Format(config.format.views).is_multiple_choice else "custom views"


def describe_labels(config: TaskConfig) -> str:
    """The labels of a task in one line."""
    if config.range:
        return f"{config.range[0]:g} to {config.range[1]:g}"
    labels = config.labels or ()
    names = labels.values() if isinstance(labels, Mapping) else labels
    return ", ".join(dict.fromkeys(names))
