"""What scikit-learn calls X and y, as rows and labels."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, NamedTuple

import numpy as np

from task_formats import Row, RowError, Task, UsageError
from task_formats.templates import look_up

Kind = Literal["text", "pair", "row"]
_WORDS = {"text": "a text", "pair": "a pair", "row": "a row"}
_SIMPLE = (bool, int, float, str)


class Samples(NamedTuple):
    """N texts, pairs of texts, or rows, and which of the three they are."""

    kind: Kind
    values: list[Any]

    @property
    def words(self) -> str:
        """Their kind in words."""
        return _WORDS[self.kind]

    def rows(self, fields: Sequence[str]) -> list[Row]:
        """The samples as mappings; the texts of a pair, and a text alone, go by these names."""
        if self.kind == "row":
            return self.values
        pairs = [[value] if self.kind == "text" else value for value in self.values]
        return [dict(zip(fields, map(str, pair), strict=True)) for pair in pairs]


def read_samples(X: Iterable[Any]) -> Samples:
    """From a list, an array, a Series or a DataFrame. UsageError names the sample at fault."""
    if isinstance(X, str | bytes | Mapping) or not isinstance(X, Iterable):
        raise UsageError(f"X is {X!r}, not a list of samples", cure="For one sample write [X].")
    table = getattr(X, "to_dict", None) if hasattr(X, "columns") else None
    values = list(table("records") if table else X)
    if not values:
        raise UsageError("X has no samples")
    kinds = [_kind(value, n) for n, value in enumerate(values)]
    odd = next((n for n, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        what = f"X[{odd}] is {_WORDS[kinds[odd]]} and X[0] is {_WORDS[kinds[0]]}"
        raise UsageError(what, cure="Give samples of one kind: texts, pairs of texts, or mappings.")
    return Samples(kinds[0], values)


def _kind(value: Any, n: int) -> Kind:
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "row"
    listed = isinstance(value, list | tuple | np.ndarray)
    if listed and len(value) == 2 and all(isinstance(part, str) for part in value):
        return "pair"
    raise UsageError(
        f"X[{n}] is {value!r}", cure="A sample is a text, a pair of texts, or a mapping."
    )


def check_rows(task: Task, rows: Iterable[Row]) -> None:
    """RowError with the number of the first sample that lacks a text."""
    unlabelled = task.without_labels()
    for n, row in enumerate(rows):
        try:
            unlabelled.example(row, f"X[{n}]", labelled=False)
        except RowError as error:
            raise error.located(f"X[{n}]") from None


def plain_rows(task: Task, rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What the task reads of every row, under the names it looks for, as JSON can hold it."""
    columns = sorted(task.text_columns)
    read = [task.read(row) if task.read else row for row in rows]
    return [{name: _plain(look_up(row, name)) for name in columns} for row in read]


def _plain(value: Any) -> Any:
    """Numpy's values as Python's; lists as lists; numbers as they are; all else as a text."""
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, _SIMPLE) else str(value)


class Targets(NamedTuple):
    """C distinct labels in their order, and which of them each of N samples has."""

    labels: np.ndarray
    """(C,) of y's own type, or of objects."""
    which: list[int]


def read_labels(y: Any, count: int) -> Targets:
    """The labels of `count` samples; UsageError where they are no classes."""
    if y is None:
        raise UsageError("fit requires y to be passed, but the target y is None")
    values = list(y)
    if len(values) != count:
        raise UsageError(f"X has {count} samples and y has {len(values)} labels")
    for n, value in enumerate(values):
        if value is None or (isinstance(value, Real) and value != value):
            raise UsageError(f"y[{n}] is {value!r}: no label", cure="Leave such samples out.")
    try:
        labels = sorted(set(values))
    except TypeError as error:
        what = f"the labels in y cannot be put in an order: {error}"
        raise UsageError(what, cure="Give labels of one kind: all texts, or all numbers.") from None
    if len(labels) < 2:
        raise UsageError(f"all labels are {labels[0]!r}, and one class is nothing to learn")
    place = {label: k for k, label in enumerate(labels)}
    return Targets(_array(labels, getattr(y, "dtype", None)), [place[value] for value in values])


def _array(labels: list[Any], dtype: Any) -> np.ndarray:
    """(C,) labels as an array that gives them back as they were."""
    if isinstance(dtype, np.dtype):
        return np.array(labels, dtype=dtype)
    if len(set(map(type, labels))) == 1 and type(labels[0]) in _SIMPLE:
        return np.array(labels)
    found = np.empty(len(labels), dtype=object)
    found[:] = labels
    return found
