"""Strict JSON: exact on request, and nothing that other readers refuse."""

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.storage import json_files
from task_formats import UsageError

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=8).filter(
    lambda text: text != "$float"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


def refuse(constant: str) -> None:
    raise AssertionError(constant)


@given(VALUES)
def test_exact_values_come_back(value: Any) -> None:
    data = json_files.encode(value, exact=True)
    back = json_files.decode(data, "here")
    # repr, because NaN is not equal to itself, and -0.0 is equal to 0.0.
    assert repr(back) == repr(value)
    json.loads(data.decode("utf-8"), parse_constant=refuse)


@given(VALUES)
def test_numbers_that_are_not_finite_become_null(value: Any) -> None:
    def plain(value: Any) -> Any:
        match value:
            case float():
                return value if math.isfinite(value) else None
            case list():
                return [plain(item) for item in value]
            case dict():
                return {key: plain(item) for key, item in value.items()}
        return value

    data = json_files.encode(value)
    assert b"\n" not in data
    assert json.loads(data.decode("utf-8"), parse_constant=refuse) == plain(value)


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass(frozen=True)
class Place:
    name: str
    point: Point


def test_records_and_numbers_of_arrays() -> None:
    value = Place("ü", Point(torch.tensor(2.5), (np.int64(3), np.float32(0.5), torch.tensor(True))))
    expected = {"name": "ü", "point": {"x": 2.5, "y": [3, 0.5, True]}}
    assert json_files.decode(json_files.encode(value), "") == expected
    assert "ü".encode() in json_files.encode(value)


@pytest.mark.parametrize("value", [object(), b"x", torch.ones(2), {1, 2}, Point])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        json_files.encode({"key": value})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b'{"$float": "x"}', b'{"$float": null}', b"9" * 5000, b"[" * 200_000],
)
def test_invalid_text_is_reported(data: bytes) -> None:
    with pytest.raises(UsageError, match="not valid JSON") as caught:
        json_files.decode(data, "run/result.json")
    assert caught.value.where == "run/result.json"


@given(st.binary(max_size=30) | st.text('{}[]",:0e$float\\u', max_size=20).map(str.encode))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        value = json_files.decode(data, "")
    except UsageError:
        return
    assert repr(json_files.decode(json_files.encode(value, exact=True), "")) == repr(value)
