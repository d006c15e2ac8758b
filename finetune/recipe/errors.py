"""What is wrong with a recipe, in one sentence with its place and its cure."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from finetune.recipe.yaml_documents import Path, describe_value
from task_formats import UsageError, suggest

_EXPECTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "too_long": "a shorter list",
    "too_short": "a longer list",
    "missing": "a longer list",
}
_UNKNOWN = ("extra_forbidden", "invalid_key")


class Fault(NamedTuple):
    """One value that is not what it should be."""

    path: Path
    details: ErrorDetails


def find_faults(model: type[BaseModel], data: Any) -> list[Fault]:
    """What keeps the data from being typed; nothing where it can be."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        return [Fault(_real_path(details, data), details) for details in error.errors()]
    return []


def explain_faults(
    faults: Sequence[Fault], model: type[BaseModel], lines: Mapping[Path, int], where: str
) -> UsageError:
    """The worst of the faults in words: a misspelt key first, then the innermost value."""
    path, worst = max(faults, key=lambda fault: (_rank(fault.details), len(fault.path)))
    place = _find_place(path, lines, where)
    kind, name = worst["type"], show_path(path)
    if kind in _UNKNOWN:
        return UsageError(f"unknown key {name!r}", where=place, cure=_nearest_key(path, model))
    if kind == "missing" and isinstance(worst["loc"][-1], str):
        return UsageError(f"{name} is missing", where=place, cure=_describe_key(path, model))
    if kind == "value_error":
        error = worst["ctx"]["error"]
        cure = error.cure if isinstance(error, UsageError) else ""
        what = error.what if isinstance(error, UsageError) else str(error)
        return UsageError(f"{name}: {what}", where=place, cure=cure)
    alike = [other for there, other in faults if there == path and _rank(other) == _rank(worst)]
    wanted = " or ".join(dict.fromkeys(map(_expected, alike)))
    subject = f"a key of {show_path(path[:-1])}" if "[key]" in worst["loc"] else name
    return UsageError(
        f"{subject} is {describe_value(worst['input'])}, and should be {wanted}",
        where=place,
        cure=_cure(worst, wanted),
    )


def refuse_flags(data: Any, typed: Any, lines: Mapping[Path, int], where: str) -> None:
    """UsageError where the recipe says true or false for a number: Python would count them 1, 0."""
    for path, flag, value in _pair_leaves(data, typed, ()):
        if isinstance(flag, bool) and not isinstance(value, bool):
            raise UsageError(
                f"{show_path(path)} is {describe_value(flag)}, and should be a number",
                where=_find_place(path, lines, where),
            )


def show_path(path: Sequence[Any]) -> str:
    """A path with dots; the whole recipe where it is empty."""
    return ".".join(map(str, path)) if path else "the recipe"


def list_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that a recipe can have, with its dotted path."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for part in _find_parts(info.annotation):
            yield from list_keys(part, f"{prefix}{name}.")


def _find_parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _find_parts(inner)


def _real_path(fault: ErrorDetails, data: Any) -> Path:
    """The path as the recipe has it: pydantic's also names the branches of a union."""
    path: list[Any] = []
    for part in fault["loc"]:
        for key in _find_keys(data, part):
            path.append(key)
            data = data[key]
    if fault["type"] == "missing" and isinstance(fault["loc"][-1], str):
        path.append(fault["loc"][-1])
    return tuple(path)


def _find_keys(data: Any, part: int | str) -> list[Any]:
    """The key or index of `data` that pydantic means, if any; it shows all keys as text."""
    if isinstance(data, Mapping):
        return [key for key in data if key == part or str(key) == part][:1]
    if isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
        return [part]
    return []


def _rank(fault: ErrorDetails) -> int:
    return 2 if fault["type"] in _UNKNOWN else int(fault["type"] != "missing")


def _expected(fault: ErrorDetails) -> str:
    if "expected" in fault.get("ctx", {}):
        return str(fault["ctx"]["expected"])
    kind = fault["type"]
    known = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0])
    return known or fault["msg"].removeprefix("Input should be ").removeprefix("a valid ")


def _cure(fault: ErrorDetails, wanted: str) -> str:
    value = fault["input"]
    if fault["type"] == "literal_error" and isinstance(value, str):
        return suggest(value, wanted.replace(" or ", ", ").replace("'", "").split(", "))
    if "text" in wanted and isinstance(value, bool | int | float):
        return "Write it in quotes."
    return f"Write it as [{value}]." if wanted == "a list" and isinstance(value, str) else ""


def _find_place(path: Path, lines: Mapping[Path, int], where: str) -> str:
    """File and line of a path, or of the nearest one around it that the file has."""
    ends = range(len(path), 0, -1)
    line = next((lines[path[:end]] for end in ends if path[:end] in lines), None)
    return f"{where}, line {line}" if line else where


def _nearest_key(path: Path, model: type[BaseModel]) -> str:
    section, name = ".".join(map(str, path[:-1])), str(path[-1])
    known = list(list_keys(model))
    everywhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    for names, cutoff in ((beside, 0.6), (everywhere, 0.75)):
        if close := get_close_matches(name, names, n=1, cutoff=cutoff):
            return f"Did you mean {names[close[0]]!r}?"
    return f"Known there: {', '.join(beside)}."


def _describe_key(path: Path, model: type[BaseModel]) -> str:
    """What a key is for, as its type tells."""
    for name in path[:-1]:
        model = next(_find_parts(model.model_fields[str(name)].annotation), model)
    info = model.model_fields.get(str(path[-1]))
    return (info.description or "").partition("\n")[0] if info else ""


def _pair_leaves(data: Any, typed: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """Every plain value of the data beside what it was typed as."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            inner = getattr(typed, str(key)) if isinstance(typed, BaseModel) else typed.get(key)
            yield from _pair_leaves(value, inner, (*path, key))
    elif isinstance(data, list | tuple):
        for index, value in enumerate(data):
            yield from _pair_leaves(value, typed[index], (*path, index))
    else:
        yield path, data, typed
