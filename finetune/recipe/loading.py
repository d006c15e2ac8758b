"""Recipes as files: finding, loading and writing them."""

import os
from collections.abc import Collection, Container, Mapping
from pathlib import Path
from typing import Any

from finetune.recipe.schema import DataConfig, Recipe
from finetune.recipe.validation import apply_overrides, validate
from finetune.recipe.yaml_documents import Document, parse_document, read_document
from task_formats import UsageError, suggest

TRUST_VARIABLE = "GPTFT_TRUST_REMOTE_CODE"
"""Environment variable that replaces --trust-remote-code."""


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] = {}) -> Recipe:
    """Loads the recipe of a shipped task or of a YAML file.

    Args:
        name_or_path: A task's name, or a YAML file. Data files in it are relative to its folder.
        overrides: Dotted key to value, as in {"train.epochs": 5}. Files in them are relative to the
            current folder.

    Raises:
        UsageError: There is no such recipe, or it is not valid; the message names the line.
    """
    path = find_yaml_file(name_or_path, shipped_recipes(), "task")
    recipe = _validate(apply_overrides(Recipe, read_document(path), overrides))
    trust = recipe.base.trust_remote_code
    check_code_trust("base.trust_remote_code", trust, overrides, str(path))
    return resolve_paths(recipe, path.resolve().parent, overrides)


def parse_recipe(text: str, where: str = "") -> Recipe:
    """Returns the recipe in a YAML text; paths in it stay as they are."""
    return _validate(parse_document(text, where))


def override_recipe(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with other values at some dotted keys (see `apply_overrides`)."""
    document = Document(recipe.model_dump(exclude_unset=True))
    return _validate(apply_overrides(Recipe, document, overrides))


def override_data(data: DataConfig, overrides: Mapping[str, Any]) -> DataConfig:
    """Returns the data section with other values at some keys (`data.limit`), validated."""
    values = {key.removeprefix("data."): value for key, value in overrides.items()}
    document = Document(data.model_dump(exclude_unset=True))
    return validate(DataConfig, apply_overrides(DataConfig, document, values))


def resolve_paths(recipe: Recipe, folder: Path, overrides: Collection[str] = ()) -> Recipe:
    """Returns the recipe with absolute paths for the data files and folders that it names.

    Paths of data are relative to `folder`. `base.path` and the keys in `overrides` are relative to
    the current folder.
    """

    def resolve(key: str, path: str | None) -> str | None:
        if path in (None, "", "-"):
            return path
        is_override = any(f"{key}.".startswith(f"{override}.") for override in overrides)
        return str((Path.cwd() if is_override else folder) / os.path.expanduser(str(path)))

    data, base = recipe.data, recipe.base
    paths: dict[str, Any] = {}
    if data.path is None:
        splits = {name: getattr(data, name) for name in ("train", "evaluate", "predict")}
        paths = {name: resolve(f"data.{name}", file) for name, file in splits.items()}
        extra = {name: resolve(f"data.extra.{name}", file) for name, file in data.extra.items()}
        paths["extra"] = extra
    else:
        source = Path(str(resolve("data.path", data.path)))
        # `nyu-mll/glue` is a data set of the hub, unless there is such a folder.
        if data.path.startswith((".", "~")) or source.exists():
            paths["path"] = str(source.resolve())
    if (local := Path(base.path).expanduser()).exists():  # not a hub id or a name
        base = base.model_copy(update={"path": str(local.resolve())})
    return recipe.model_copy(update={"data": data.model_copy(update=paths), "base": base})


def check_code_trust(key: str, wanted: bool, overrides: Container[str], where: str) -> None:
    """UsageError if only the file itself says that the Python code of a base can be trusted."""
    if wanted and key not in overrides and os.environ.get(TRUST_VARIABLE) != "1":
        what = f"{key}: true would run Python code that comes with the base"
        cure = f"If you trust its source, pass --trust-remote-code or set {TRUST_VARIABLE}=1."
        raise UsageError(what, where=where, cure=cure)


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def shipped_folder() -> Path:
    """Returns the folder of shipped recipes: in an installed package, or in the repository."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def find_yaml_file(name: str | Path, shipped: Mapping[str, Path], kind: str) -> Path:
    """Returns a shipped file by its name, or the path itself; UsageError if there is no file."""
    path = shipped.get(str(name), Path(name))
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        what = "this is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{what}: {name}", cure="Check the path.")
    cure = f"{suggest(str(name), shipped)} For a file of yours give its path, with .yaml."
    raise UsageError(f"unknown {kind} {str(name)!r}", cure=cure)


def recipe_schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe, for editors: types, defaults and descriptions."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **Recipe.model_json_schema()}


def _validate(document: Document) -> Recipe:
    if "corpus" in document.data and "task" not in document.data:
        cure = "Use gptft pretrain with it, and its result as --base of gptft train."
        what = "this is a pre-training plan, not a recipe"
        raise UsageError(what, where=document.where, cure=cure)
    return validate(Recipe, document)
