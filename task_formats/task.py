"""A task: how a row becomes an example, and what its label can be."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from task_formats import templates
from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Example, Label, Row
from task_formats.formats import CHOICE, Format
from task_formats.labels import Classes, Labels, Range, as_text
from task_formats.prompts import Prompt

CHOICES, LABEL = "choices", "label"

Column = str | Sequence[str]
"""A column's name, a template over columns, or for choices a list of these."""


@dataclass(frozen=True)
class Task:
    """A task, for fine-tuning, prediction and prompting alike.

    Args:
        format: The views of an example.
        columns: Field of the format, `choices` or `label` to the column that holds it.
        labels: Classes, or the range of a score.
        metrics: Names of metrics; the first one selects the best model.
        positive: The class that F1 counts.
        prompt: The task in words, for zero- and few-shot evaluation.
        values: Words that replace a column's values: {"question": {"cause": "because"}}.
        unlabelled: Raw labels that mean "no label" in this data set (SNLI's "-").
        read: Turns a row into another one before `columns` are looked up.

    Raises:
        UsageError: The arguments do not fit together.
    """

    format: Format
    columns: Mapping[str, Column]
    labels: Labels
    metrics: tuple[str, ...] = ()
    positive: str | None = None
    prompt: Prompt | None = None
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unlabelled: frozenset[str] = field(default_factory=frozenset)
    read: Callable[[Row], Row] | None = None

    def __post_init__(self) -> None:
        if self.format.is_multiple_choice and isinstance(self.labels, Range):
            raise UsageError("multiple choice needs labels, not a range", cure="Set task.labels.")
        self._check_columns()
        if self.prompt:
            fields = sorted(set(self.columns) - {CHOICES, LABEL})
            prompt = self.prompt.bind(self.format.is_multiple_choice, self.labels, fields)
            object.__setattr__(self, "prompt", prompt)

    def _check_columns(self) -> None:
        needed = {*self.format.fields, *([CHOICES] if self.format.is_multiple_choice else [])}
        for name in sorted(needed - set(self.columns)):
            raise UsageError(
                f"{name!r} is missing in task.columns", cure=f"The format uses {sorted(needed)}."
            )
        used = {*needed, LABEL, *(self.prompt.fields if self.prompt else ())}
        for name in sorted(set(self.columns) - used):
            raise UsageError(
                f"{name!r} in task.columns is not used", cure=suggest(name, {*needed, LABEL})
            )
        for name, column in self.columns.items():
            _check_column(name, column)
        for name in sorted(set(self.values) - self.text_columns):
            raise UsageError(
                f"{name!r} in task.values is not used", cure=suggest(name, self.text_columns)
            )

    @property
    def positive_class(self) -> str | None:
        """The class that F1 counts: `positive`, or the second of two classes."""
        names = self.labels.names if isinstance(self.labels, Classes) else ()
        return names[1] if self.positive is None and len(names) == 2 else self.positive

    @property
    def text_columns(self) -> set[str]:
        """The columns of a row that fields and choices read."""
        columns = [column for name, column in self.columns.items() if name != LABEL]
        return {part for column in columns for part in _referenced_columns(column)}

    def without_labels(self) -> "Task":
        """Returns the task for prediction: the label column is never read."""
        columns = {name: column for name, column in self.columns.items() if name != LABEL}
        return replace(self, columns=columns)

    def without_prompt(self) -> "Task":
        """Returns the task without its prompt and the columns that only the prompt uses."""
        names = {*self.format.fields, CHOICES, LABEL}
        columns = {name: column for name, column in self.columns.items() if name in names}
        task = replace(self, prompt=None, columns=columns, values={})
        values = {name: words for name, words in self.values.items() if name in task.text_columns}
        return replace(task, values=values)

    def example(self, row: Row, id: str, *, labelled: bool = True) -> Example:
        """Turns a row into an example.

        Args:
            row: One record of the data set.
            id: The example's id.
            labelled: False accepts a row without a label; a label that is there is still read.

        Raises:
            RowError: A column is missing, empty or invalid, or a label is missing or unknown.
        """
        row = self.read(row) if self.read else row
        names = sorted(set(self.columns) - {CHOICES, LABEL})
        fields = {name: self._text(row, str(self.columns[name]), name) for name in names}
        choices = self._choices(row) if self.format.is_multiple_choice else ()
        label = self._label(row)
        if label is None and labelled:
            raise self._missing_label(row)
        if self.format.is_multiple_choice and label is not None and label >= len(choices):
            raise RowError(
                f"label {self.labels.name(label)!r} is choice {int(label) + 1} of {len(choices)}"
            )
        return Example(id, fields, choices, label)

    def _choices(self, row: Row) -> tuple[str, ...]:
        column = self.columns[CHOICES]
        if isinstance(column, str):
            choices = _read_list(row, column)
        else:
            choices = tuple(self._text(row, c, f"{CHOICES}[{k}]") for k, c in enumerate(column))
        if len(choices) < 2:
            raise RowError(
                f"{len(choices)} choices in column {column!r}", cure="Give at least two choices."
            )
        if len(choices) > self.labels.num_outputs:
            raise RowError(
                f"{len(choices)} choices but {self.labels.num_outputs} labels",
                cure="Extend task.labels.",
            )
        return choices

    def _text(self, row: Row, column: str, field_name: str) -> str:
        """A field's text, without blanks at its ends: only SST-2's training rows end in one."""
        template = column if templates.is_template(column) else f"{{{column}}}"
        values = {name: self._value(row, name) for name in templates.field_names(template)}
        text = templates.fill(template, values).strip()
        if not text:
            raise RowError(
                f"empty text for {field_name!r} in column {column!r}", cure="Fill it in."
            )
        return text

    def _value(self, row: Row, name: str) -> str:
        """A column's value, or the word that replaces it."""
        value = _to_text(_look_up(row, name), name)
        words = self.values.get(name)
        if words is None:
            return value
        if value not in words:
            raise RowError(
                f"{value!r} in column {name!r} is not in task.values", cure=suggest(value, words)
            )
        return words[value]

    def _label(self, row: Row) -> Label:
        column = str(self.columns.get(LABEL, ""))
        if not column or not _has_column(row, column):
            return None
        value = _look_up(row, column)
        text = as_text(value)
        # The hub marks unlabelled rows with -1 (GLUE's test splits; -1.0 where labels are scores).
        is_marker = text in ("-1", "-1.0") and not self._is_label("-1")
        if text == "" or is_marker or text in self.unlabelled:
            return None
        return self.labels.parse(value)

    def _is_label(self, text: str) -> bool:
        if isinstance(self.labels, Range):
            return self.labels.low <= float(text)
        return text in self.labels.raw or text in self.labels.names

    def _missing_label(self, row: Row) -> RowError:
        column = str(self.columns.get(LABEL, ""))
        if column and not _has_column(row, column):
            return _missing_column(row, column)
        return RowError("no label", cure="Give the row a label, or predict on it instead.")


def _check_column(name: str, column: Column) -> None:
    where = f"task.columns.{name}"
    if not isinstance(column, str):
        if name != CHOICES:
            raise UsageError("must not be a list", where=where, cure="Only choices can be a list.")
        for part in column:
            _check_column(name, part)
    elif templates.is_template(column):
        if name == LABEL:
            raise UsageError("must not be a template", where=where, cure="Name one column.")
        templates.field_names(column)


def _referenced_columns(column: Column) -> list[str]:
    if not isinstance(column, str):
        return [name for part in column for name in _referenced_columns(part)]
    return list(templates.field_names(column)) if templates.is_template(column) else [column]


def _look_up(row: Row, name: str) -> Any:
    try:
        return templates.look_up(row, name)
    except KeyError:
        raise _missing_column(row, name) from None


def _has_column(row: Row, name: str) -> bool:
    try:
        templates.look_up(row, name)
    except KeyError:
        return False
    return True


def _missing_column(row: Row, name: str) -> RowError:
    return RowError(f"no column {name!r}", cure=suggest(name, map(str, row)))


def _read_list(row: Row, column: str) -> tuple[str, ...]:
    values = _look_up(row, column)
    if not isinstance(values, list | tuple) and not hasattr(values, "tolist"):
        raise RowError(
            f"column {column!r} must hold a list of choices (got {values!r})",
            cure="For choices in separate columns write choices: [ending1, ending2].",
        )
    texts = tuple(_to_text(value, f"{column}[{k}]") for k, value in enumerate(values))
    for k, text in enumerate(texts):
        if not text:
            raise RowError(f"choice {k + 1} in column {column!r} is empty", cure="Fill it in.")
    return texts


def _to_text(value: Any, name: str) -> str:
    # A missing value is None, or a NaN in tables from pandas; the words "nan" and "n/a" are text.
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        raise RowError(f"column {name!r} is empty", cure="Fill it in.")
    if isinstance(value, list | tuple | Mapping | bytes):
        raise RowError(f"column {name!r} must hold text (got a {type(value).__name__})")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"column {name!r} holds half of a surrogate pair at character {error.start + 1}",
            cure="Read the data as UTF-8 with errors='replace'.",
        ) from None
    return text


__all__ = ["CHOICE", "CHOICES", "LABEL", "Column", "Task"]
