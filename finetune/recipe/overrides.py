"""YAML files as typed parts: read within bounds, checked, and changed by flags."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from finetune.recipe.errors import explain_faults, find_faults, refuse_flags
from finetune.recipe.yaml_documents import Path as KeyPath
from finetune.recipe.yaml_documents import parse_value
from task_formats import UsageError

MAX_BYTES = 256 * 1024
Model = TypeVar("Model", bound=BaseModel)


def read_text(path: Path) -> str:
    """The text of a small file; UsageError where it is large, unreadable or not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"cannot read the recipe: {error.strerror}", where=str(path), cure="Check the file."
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"the byte {content[error.start]:#04x} is not UTF-8",
            where=f"{path}, line {line}",
            cure="Save the recipe as UTF-8 text.",
        ) from None
    if len(content) > MAX_BYTES:
        raise UsageError(
            f"more than {MAX_BYTES // 1024} KiB, too much for a recipe",
            where=str(path),
            cure="Is this the data? A recipe is a short YAML file that names it.",
        )
    return text


def validate(model: type[Model], data: Any, lines: Mapping[KeyPath, int], where: str) -> Model:
    """The values as a model; UsageError for every fault, with the line it stands on."""
    if faults := find_faults(model, data):
        raise explain_faults(faults, model, lines, where)
    typed = model.model_validate(data)
    refuse_flags(data, typed, lines, where)
    return typed


def apply_overrides(
    model: type[BaseModel], said: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The values with those at some dotted paths replaced; texts are read as the model wants them.

    `3e-5` becomes a number where a number is wanted, and stays text where text is.
    """
    texts = {path: value for path, value in changes.items() if isinstance(value, str)}
    values = {**changes, **{path: parse_value(text) for path, text in texts.items()}}
    # What YAML takes for a number or a mapping may be meant as text: `data.name=2021`.
    plain = {**values, **{path: texts[path] for path in _blame(model, texts, _put(said, values))}}
    stubborn = _blame(model, texts, _put(said, plain))
    return _put(said, {**plain, **{path: values[path] for path in stubborn}})


def _blame(model: type[BaseModel], paths: Iterable[str], data: Any) -> list[str]:
    """Those of the dotted paths under which the values cannot be typed."""
    faults = [".".join(map(str, fault.path)) + "." for fault in find_faults(model, data)]
    return [path for path in paths if any(fault.startswith(path + ".") for fault in faults)]


def _put(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the values at dotted paths replaced; mappings on the way are made."""
    changed = copy.deepcopy(dict(data))
    for path, value in changes.items():
        *around, last = path.split(".")
        inner: dict[Any, Any] = changed
        for name in around:
            key = _same_key(inner, name)
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[_same_key(inner, last)] = value
    return changed


def _same_key(mapping: Mapping[Any, Any], name: str) -> Any:
    """The key that reads like the name: labels may be numbers."""
    return next((key for key in mapping if str(key) == name), name)
