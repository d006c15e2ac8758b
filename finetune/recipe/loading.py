"""Recipes as files: found, read, changed by flags, and written with every value."""

import os
from collections.abc import Container, Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any

from finetune.recipe.overrides import apply_overrides, read_text, validate
from finetune.recipe.schema import Recipe
from finetune.recipe.yaml_documents import Path as KeyPath
from finetune.recipe.yaml_documents import parse_document, write_document
from task_formats import UsageError, suggest

TRUST_VARIABLE = "GPTFT_TRUST_REMOTE_CODE"
"""The variable that lets files and runs ask for what --trust-remote-code asks for in a command."""
_SPLITS = ("train", "evaluate", "predict")


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] = {}) -> Recipe:
    """The recipe of a shipped task, or of a YAML file, with some values changed.

    `overrides` maps dotted paths to values, {"train.epochs": 5}. Data files that the file names
    are looked for beside it, those of `overrides` where the program runs.

    Raises UsageError for a name nobody knows, a file that cannot be read, and every fault of its
    contents with the line it stands on.
    """
    path = _find_recipe(name_or_path)
    recipe = parse_recipe(read_text(path), str(path))
    check_code_trust("base.trust_remote_code", recipe.base.trust_remote_code, overrides, str(path))
    return override_recipe(_place_files(recipe, path.resolve().parent), overrides)


def check_code_trust(key: str, wanted: bool, said: Container[str], where: str) -> None:
    """UsageError where nobody but the file itself says that a base's code can be trusted."""
    if wanted and key not in said and os.environ.get(TRUST_VARIABLE) != "1":
        raise UsageError(
            f"{key}: true would run Python code that comes with the base",
            where=where,
            cure=f"If you trust its source, pass --trust-remote-code or set {TRUST_VARIABLE}=1.",
        )


def parse_recipe(text: str, where: str = "") -> Recipe:
    """The recipe that a YAML text holds; file names in it stay as they are."""
    document = parse_document(text, where)
    if "corpus" in document.data and "task" not in document.data:
        raise UsageError(
            "this is a plan of pre-training, which has no task",
            where=where,
            cure="gptft pretrain takes it; the folder that this makes is a --base for gptft train.",
        )
    return _type(document.data, document.lines, where)


def override_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the values at some dotted paths changed, and checked again.

    Values may be text from a command line: `3e-5` becomes a number where a number is wanted,
    `null` nothing, `{0: no, 1: yes}` a mapping, and `yes` stays the word it is.
    """
    said = apply_overrides(Recipe, recipe.model_dump(exclude_unset=True), changes)
    return _forget_unsaid_files(_type(said, {}, ""))


def resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with whole paths for the data and the base that it names as seen from a folder.

    So a run made by `Recipe(...)` in Python can be read from anywhere. Splits that are not said
    are those of a data set, and without one there are none.
    """
    recipe = _place_files(_forget_unsaid_files(recipe), folder)
    base = folder / recipe.base.path
    if not base.is_dir():  # a hub id, or a name
        return recipe
    part = recipe.base.model_copy(update={"path": str(base.resolve())})
    return recipe.model_copy(update={"base": part})


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every value written out; it loads back equal."""
    return write_document(recipe.model_dump())


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    inside = Path(__file__).parents[1] / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors: types, defaults and descriptions."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
    }


def _find_recipe(name: str | Path) -> Path:
    known = shipped_recipes()
    if str(name) in known:
        return known[str(name)]
    path = Path(name)
    if path.is_file():
        return path
    if str(name) and path.is_dir():
        raise UsageError(f"{name} is a folder", cure="Name the YAML file, or a shipped recipe.")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise UsageError(f"no recipe file {name}", cure="Check the path; `gptft new` writes one.")
    raise UsageError(
        f"unknown task {str(name)!r}",
        cure=f"{suggest(str(name), known)} A recipe of your own is named with its .yaml.",
    )


def _type(data: Any, lines: Mapping[KeyPath, int], where: str) -> Recipe:
    """The values as a recipe whose parts fit together."""
    recipe = validate(Recipe, data, lines, where)
    try:
        recipe.task.build()
        for name in recipe.task.prompts:
            recipe.task.with_prompt(name).build()
    except UsageError as error:
        raise (error.located(where) if where else error) from None
    return recipe


def _place_files(recipe: Recipe, folder: Path) -> Recipe:
    """Files and folders that the recipe names, as they lie from the recipe."""
    part = recipe.data
    changes: dict[str, Any] = {}
    if part.path is not None:
        # `nyu-mll/glue` is a data set of the hub unless such a folder lies beside the recipe.
        if part.path.startswith(".") or (folder / part.path).is_dir():
            changes["path"] = str((folder / part.path).resolve())
    else:
        said = {name: getattr(part, name) for name in _SPLITS if name in part.model_fields_set}
        changes = {name: _place(file, folder) for name, file in said.items()}
        if part.extra:
            changes["extra"] = {name: _place(file, folder) for name, file in part.extra.items()}
    return (
        recipe.model_copy(update={"data": part.model_copy(update=changes)}) if changes else recipe
    )


def _place(file: str | None, folder: Path) -> str | None:
    return file if file in (None, "", "-") else str(folder / expanduser(str(file)))


def _forget_unsaid_files(recipe: Recipe) -> Recipe:
    """`train` and `validation` are splits of a data set; without one they are no files."""
    part = recipe.data
    unsaid = [name for name in _SPLITS if name not in part.model_fields_set]
    if part.path is not None or not unsaid:
        return recipe
    part = part.model_copy(update=dict.fromkeys(unsaid))
    return recipe.model_copy(update={"data": part})
