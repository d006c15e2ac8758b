"""Strict JSON, which every other program can read, for the files of a run."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from task_formats import UsageError

_FLOAT = "$float"


def encode(value: Any, *, exact: bool = False, indent: int | None = None) -> bytes:
    """Encodes plain values, NamedTuples, dataclasses and 0-d arrays as JSON in UTF-8.

    Args:
        value: What to encode.
        exact: JSON has no NaN and infinity. Encode them as {"$float": "nan"}, which `decode` turns
            back into the number; otherwise they become null.
        indent: Spaces per level; by default all is on one line.

    Raises:
        TypeError: It contains another type.
    """
    plain = _to_plain(value, exact)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=indent)
    # UTF-8 cannot encode a lone surrogate; Python escapes it as \udxxx, as JSON does.
    return text.encode("utf-8", "backslashreplace")


def decode(data: bytes, where: str) -> Any:
    """Decodes JSON. Raises UsageError, which names `where`, for anything else."""
    try:
        return json.loads(data, object_hook=_decode_object)
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"not valid JSON: {error}", where=where) from None


def _to_plain(value: Any, exact: bool) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {_FLOAT: repr(value)} if exact else None
    if isinstance(value, Mapping):
        return {key: _to_plain(item, exact) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _to_plain(value._asdict(), exact)
    if isinstance(value, list | tuple):
        return [_to_plain(item, exact) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name), exact) for field in fields(value)}
    if getattr(value, "ndim", None) == 0:  # a number of torch or numpy
        return _to_plain(value.item(), exact)
    raise TypeError(f"JSON has no {type(value).__name__}")


def _decode_object(mapping: dict[str, Any]) -> Any:
    return float(mapping[_FLOAT]) if mapping.keys() == {_FLOAT} else mapping
