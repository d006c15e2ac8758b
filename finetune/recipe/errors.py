"""pydantic's errors as one message with file, line, key and cure."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from finetune.recipe.yaml_documents import Document, KeyPath, format_value
from task_formats import UsageError, suggest

Model = TypeVar("Model", bound=BaseModel)
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
_CURES = {
    "string_type": "Put text in quotes.",
    "tuple_type": "Write a list: [first, second].",
}


def validate(model: type[Model], document: Document) -> Model:
    """Returns the document as a model.

    Raises:
        UsageError: A key is unknown or missing, or a value is invalid. It names the file and line.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise _explain(error, model, document) from None


def walk_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every key of a model and of the models in it, dotted, and its field."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for inner in _models_in(field.annotation):
            yield from walk_fields(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _explain(error: ValidationError, model: type[BaseModel], document: Document) -> UsageError:
    """One error of several: a misspelt key first, then the innermost value."""
    errors = [(_find_path(details, document.data), details) for details in error.errors()]
    path, worst = max(errors, key=lambda item: (_priority(item[1]), len(item[0])))
    where = _find_line(path, document)
    key = ".".join(map(str, path)) if path else "the file"
    fields = dict(walk_fields(model))
    if worst["type"] in _UNKNOWN_KEY:
        return UsageError(f"unknown key {key!r}", where=where, cure=suggest(key, fields))
    if worst["type"] == "missing":
        cure = fields[key].description if key in fields else ""
        return UsageError(f"{key} is missing", where=where, cure=cure or "")
    if worst["type"] == "value_error":
        return _explain_validator(worst["ctx"]["error"], key, path, document)
    if "[key]" in worst["loc"]:
        key = f"a key of {'.'.join(map(str, path[:-1]))}"
    same = [details["msg"] for other, details in errors if other == path]
    texts = dict.fromkeys(re.sub(r"^Input should be | or instance of \w+", "", msg) for msg in same)
    is_plain = worst["msg"].startswith("Input should be ")
    what = f"{key} must be {' or '.join(texts)}" if is_plain else f"{key}: {worst['msg']}"
    what += f" (got {format_value(worst['input'])})"
    return UsageError(what, where=where, cure=_CURES.get(worst["type"], ""))


def _explain_validator(
    error: ValueError, key: str, path: KeyPath, document: Document
) -> UsageError:
    """An error of our own validators, which may name a key inside the section."""
    if not isinstance(error, UsageError):
        return UsageError(f"{key}: {error}", where=_find_line(path, document))
    key = error.where or key
    where = _find_line(tuple(key.split(".")), document)
    return UsageError(f"{key}: {error.what}", where=where, cure=error.cure)


def _priority(details: ErrorDetails) -> int:
    return 2 if details["type"] in _UNKNOWN_KEY else int(details["type"] != "missing")


def _find_path(details: ErrorDetails, data: Any) -> KeyPath:
    """The path in the document: pydantic's also contains the branches of unions."""
    path: list[Any] = []
    for part in details["loc"]:
        keys: list[Any] = []
        if isinstance(data, Mapping):
            keys = [key for key in data if key == part or str(key) == part]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            keys = [part]
        if keys:
            path.append(keys[0])
            data = data[keys[0]]
    if details["type"] == "missing":
        path.append(details["loc"][-1])
    return tuple(path)


def _find_line(path: KeyPath, document: Document) -> str:
    """The file and the line of a key, or of the nearest key around it."""
    for end in range(len(path), 0, -1):
        if path[:end] in document.lines:
            line = document.lines[path[:end]]
            return f"{document.where}, line {line}" if line else ""
    return document.where
