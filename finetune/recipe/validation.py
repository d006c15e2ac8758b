"""Documents as models: overrides, and pydantic's errors with file, line, key and cure."""

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from finetune.recipe.yaml_documents import Document, KeyPath, format_value, parse_value
from task_formats import UsageError, suggest

Model = TypeVar("Model", bound=BaseModel)
_PRIORITY = {"extra_forbidden": 2, "invalid_key": 2, "missing": 0}
_CURES = {"string_type": "Put text in quotes.", "tuple_type": "Write a list: [first, second]."}


def apply_overrides(
    model: type[BaseModel], document: Document, overrides: Mapping[str, Any]
) -> Document:
    """Returns the document with the values at some dotted keys replaced; nothing is validated.

    Text is read as the field needs it: "3e-5" becomes a number for a number, stays text for text;
    "null" is nothing and "{0: no, 1: yes}" a mapping.
    """
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        path: KeyPath = ()
        inner = data
        for name in parents:
            path = (*path, _find_key(inner, name))
            if not isinstance(inner.get(path[-1]), dict):
                inner[path[-1]] = {}
            inner = inner[path[-1]]
        path = (*path, _find_key(inner, last))
        inner[path[-1]] = _read(value, _annotation(model, key.split(".")))
        lines = {place: line for place, line in lines.items() if place[: len(path)] != path}
        lines[path] = None
    return Document(data, lines, document.where)


def _find_key(mapping: Mapping[Any, Any], name: str) -> Any:
    """The key that reads like the name: labels may be numbers."""
    return next((key for key in mapping if str(key) == name), name)


def _read(value: Any, annotation: Any) -> Any:
    """Text as YAML, unless the field only accepts it as text: `data.name=2021`."""
    if not isinstance(value, str):
        return value
    parsed = parse_value(value)
    if parsed is None and value.strip().lower() not in ("", "null"):
        return value  # As ~ and # are delimiters here.
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
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(names[0])
        return _annotation(field.annotation, names[1:]) if field else Any
    if get_origin(annotation) is dict:
        return _annotation(get_args(annotation)[1], names[1:])
    branches = (_annotation(branch, names) for branch in get_args(annotation))
    return next((branch for branch in branches if branch is not Any), Any)


def validate(model: type[Model], document: Document) -> Model:
    """Returns the document as a model.

    Raises:
        UsageError: A key is unknown or missing, or a value is invalid. It names the file and line.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise _explain(error, model, document) from None


def walk_fields(annotation: Any, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every key of a model and of the models in it, dotted, and its field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield prefix + name, field
            yield from walk_fields(field.annotation, f"{prefix}{name}.")
    for inner in get_args(annotation):
        yield from walk_fields(inner, prefix)


def _explain(error: ValidationError, model: type[BaseModel], document: Document) -> UsageError:
    """One error of several: a misspelt key first, then the innermost value."""
    errors = [(_find_path(details, document.data), details) for details in error.errors()]
    path, worst = max(errors, key=lambda item: (_PRIORITY.get(item[1]["type"], 1), len(item[0])))
    where = _find_line(path, document)
    key = ".".join(map(str, path)) if path else "the file"
    fields = dict(walk_fields(model))
    if _PRIORITY.get(worst["type"]) == 2:
        return UsageError(f"unknown key {key!r}", where=where, cure=suggest(key, fields))
    if worst["type"] == "missing":
        cure = fields[key].description if key in fields else ""
        return UsageError(f"{key} is missing", where=where, cure=cure or "")
    if worst["type"] == "value_error":  # a UsageError of our own validators
        cause = worst["ctx"]["error"]
        key = cause.where or key
        where = _find_line(tuple(key.split(".")), document)
        return UsageError(f"{key}: {cause.what}", where=where, cure=cause.cure)
    same = [details["msg"] for other, details in errors if other == path]
    texts = dict.fromkeys(re.sub(r"^Input should be | or instance of \w+", "", msg) for msg in same)
    is_plain = worst["msg"].startswith("Input should be ")
    what = f"{key} must be {' or '.join(texts)}" if is_plain else f"{key}: {worst['msg']}"
    what += f" (got {format_value(worst['input'])})"
    return UsageError(what, where=where, cure=_CURES.get(worst["type"], ""))


def _find_path(details: ErrorDetails, data: Any) -> KeyPath:
    """The path in the document: pydantic's also contains the branches of unions."""
    path: list[Any] = []
    for part in details["loc"]:
        keys: Any = range(len(data)) if isinstance(data, list | tuple) else ()
        if isinstance(data, Mapping):
            keys = data
        if (key := next((key for key in keys if part in (key, str(key))), None)) is not None:
            path.append(key)
            data = data[key]
    return (*path, details["loc"][-1]) if details["type"] == "missing" else tuple(path)


def _find_line(path: KeyPath, document: Document) -> str:
    """The file and the line of a key, or of the nearest key around it."""
    for end in range(len(path), 0, -1):
        if path[:end] in document.lines:
            line = document.lines[path[:end]]
            return f"{document.where}, line {line}" if line else ""
    return document.where
