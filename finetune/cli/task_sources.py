"""Finds a task by name: a shipped recipe, a YAML file, or a Task defined in Python."""

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

from finetune.cli.options import Overrides
from finetune.recipe.loading import (
    load_recipe,
    override_recipe,
    resolve_paths,
    shipped_recipes,
)
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig
from task_formats import Task, UsageError, suggest


class TaskSource(NamedTuple):
    """A recipe with its overrides, its name, and the Task if it is defined in Python."""

    name: str
    recipe: Recipe
    task: Task | None


def find_task(name: str, overrides: Overrides) -> TaskSource:
    """Loads the recipe of a task: a shipped recipe, a YAML file, or module:attribute."""
    module, colon, attribute = name.rpartition(":")
    if colon and not Path(name).exists() and not Path(name).is_absolute():
        task = _import_task(module, attribute)
        recipe = override_recipe(Recipe(task=TaskConfig.from_task(task)), overrides)
        return TaskSource(attribute, resolve_paths(recipe, Path.cwd()), task)
    return TaskSource(Path(name).stem, load_recipe(name, overrides), None)


def find_task_or_run(name: str, overrides: Overrides) -> TaskSource:
    """Loads the recipe of a task as `find_task` does, or that of the run in a folder."""
    from finetune.checkpointing.run_folder import RECIPE, read_recipe

    folder = Path(name)
    is_run = folder.is_dir() and ((folder / RECIPE).exists() or name not in shipped_recipes())
    if not is_run:
        return find_task(name, overrides)
    read_recipe(folder)  # Raises UsageError if this is not a run directory.
    return TaskSource(folder.absolute().name, load_recipe(folder / RECIPE, overrides), None)


def find_python_task(name: str | None) -> Task | None:
    """The Task of an option `--task module:attribute`, or None if the option is absent."""
    return find_task(name, {}).task if name else None


def _import_task(module: str, attribute: str) -> Task:
    """Imports a Task; modules of the current folder come first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        cure = f"Run the command in the folder of {module.partition('.')[0]}.py, or install it."
        raise UsageError(str(error), where="--task", cure=cure) from error
    task = getattr(imported, attribute, None)
    if not isinstance(task, Task):
        names = [key for key, value in vars(imported).items() if isinstance(value, Task)]
        cure = suggest(attribute, names) if names else "It contains no task_formats.Task."
        raise UsageError(f"no task {attribute!r} in module {module!r}", cure=cure)
    return task


def find_split(data: DataConfig, name: str) -> str:
    """The split or file for a name: train, evaluate, predict, an extra split, or a file."""
    roles = {"train": data.train, "evaluate": data.evaluation_split, "predict": data.predict}
    split = roles[name] if name in roles else data.extra.get(name, name)
    if split is None:
        cure = f"Name a split or a file, or set data.{name} in the recipe."
        raise UsageError(f"the recipe has no data.{name}", cure=cure)
    known = {role: value for role, value in {**roles, **data.extra}.items() if value}
    if data.path is None and split not in known.values() and not Path(split).exists():
        raise UsageError(f"neither a split nor a file: {name!r}", cure=suggest(name, known))
    return split
