"""Strict JSON for the files of a run: any reader takes it, and nothing in it is guessed."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from task_formats import UsageError

_FLOAT = "$float"


def encode(value: Any, *, exact: bool = False, indent: int | None = None) -> bytes:
    """JSON text in UTF-8 of plain values, records (NamedTuple, dataclass) and 0-d arrays.

    JSON has no NaN and no infinity: a number that is not finite becomes null. With `exact` it
    becomes {"$float": "nan"}, which `decode` turns back into the number. TypeError for anything
    else, and for keys that are not texts.
    """
    text = json.dumps(
        _plain(value, exact),
        ensure_ascii=False,
        allow_nan=False,
        check_circular=False,
        indent=indent,
    )
    # A lone surrogate has no UTF-8; Python's \udxxx for it happens to be JSON's.
    return text.encode("utf-8", "backslashreplace")


def decode(data: bytes, where: str) -> Any:
    """The value of a JSON text; UsageError naming `where` for anything but strict JSON."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse, object_hook=_number)
    except RecursionError:
        raise UsageError("nested too deeply", where=where) from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"not valid JSON: {error}", where=where) from None


def _plain(value: Any, exact: bool) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {_FLOAT: repr(value)} if exact else None
    if isinstance(value, Mapping):
        return {_key(key, exact): _plain(item, exact) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict(), exact)
    if isinstance(value, list | tuple):
        return [_plain(item, exact) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), exact) for field in fields(value)}
    if getattr(value, "ndim", None) == 0:  # a number of torch or numpy
        return _plain(value.item(), exact)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _key(key: Any, exact: bool) -> str:
    if not isinstance(key, str) or (exact and key == _FLOAT):
        raise TypeError(f"{key!r} is no key")
    return key


def _number(mapping: dict[str, Any]) -> Any:
    return float(mapping[_FLOAT]) if mapping.keys() == {_FLOAT} else mapping


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
