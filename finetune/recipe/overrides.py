"""Values from the command line or from Python that replace those of a document."""

import copy
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from finetune.recipe.yaml_documents import Document, KeyPath, parse_value


def apply_overrides(
    model: type[BaseModel], document: Document, overrides: Mapping[str, Any]
) -> Document:
    """Returns the document with the values at some dotted keys replaced.

    Text is read as the field needs it: "3e-5" becomes a number for a number, stays text for text;
    "null" is nothing and "{0: no, 1: yes}" a mapping. Nothing is validated here.

    Args:
        model: What the document will be validated as.
        document: Values of a file, or of a model.
        overrides: Dotted key to value.
    """
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        path: KeyPath = ()
        inner = data
        for name in parents:
            found = _find_key(inner, name)
            if not isinstance(inner.get(found), dict):
                inner[found] = {}
            path, inner = (*path, found), inner[found]
        found = _find_key(inner, last)
        inner[found] = _read(value, _annotation(model, key.split(".")))
        lines = {
            place: line for place, line in lines.items() if place[: len(path) + 1] != (*path, found)
        }
        lines[(*path, found)] = None
    return Document(data, lines, document.where)


def _find_key(mapping: Mapping[Any, Any], name: str) -> Any:
    """The key that reads like the name: labels may be numbers."""
    return next((key for key in mapping if str(key) == name), name)


def _read(value: Any, annotation: Any) -> Any:
    """Text as YAML, unless the field only accepts it as text: `data.name=2021`."""
    if not isinstance(value, str):
        return value
    parsed = parse_value(value)
    return value if not _accepts(annotation, parsed) and _accepts(annotation, value) else parsed


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _annotation(annotation: Any, names: list[str]) -> Any:
    """The type of the value at a key inside a model, or Any if there is none."""
    if not names:
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        inner = [_annotation(branch, names) for branch in get_args(annotation)]
        return next((found for found in inner if found is not Any), Any)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(names[0])
        return _annotation(field.annotation, names[1:]) if field else Any
    if get_origin(annotation) is dict:
        return _annotation(get_args(annotation)[1], names[1:])
    return Any
