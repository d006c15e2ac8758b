"""A task: how a row becomes an example, and what its label may be."""

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
"""A bare word names a column, braces make a template, a list picks parts."""


@dataclass(frozen=True)
class Task:
    """One task, whatever is done with it: fine-tuning, prediction or prompting.

    `columns` says where each field of the format, the choices and the label stand in a row.
    `values` puts words in the place of what a column holds: {"question": {"cause": "because"}}.
    `positive` names the class that F1 counts.
    `unlabelled` holds raw labels that mean "no label" in this data set (SNLI's "-").
    `read`, for rows that need code, turns a row into another one before `columns` looks at it.
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
        wanted = {*self.format.fields, *([CHOICES] if self.format.chooses else [])}
        for name in sorted(wanted - set(self.columns)):
            raise UsageError(
                f"task.columns lacks {name!r}", cure=f"The format reads {sorted(wanted)}."
            )
        for name in sorted(set(self.columns) - wanted - {LABEL}):
            # A prompt may speak of more than the views do.
            if self.prompt is None or name not in self.prompt.fields:
                raise UsageError(
                    f"task.columns has {name!r}, which nothing reads",
                    cure=suggest(name, {*wanted, LABEL}),
                )
        for name, column in self.columns.items():
            _check(name, column)
        read = self.text_columns
        for name in sorted(set(self.values) - read):
            raise UsageError(
                f"task.values has {name!r}, which nothing reads", cure=suggest(name, read)
            )
        if self.format.chooses and isinstance(self.labels, Range):
            raise UsageError("a choice cannot have a range", cure="Give the labels of the choices.")
        if self.prompt:
            fields = sorted(set(self.columns) - {CHOICES, LABEL})
            fitted = self.prompt.fit(self.format.chooses, self.labels, fields)
            object.__setattr__(self, "prompt", fitted)

    @property
    def positive_class(self) -> str | None:
        """The class that F1 counts: `positive`, or the second of two classes."""
        names = self.labels.names if isinstance(self.labels, Classes) else ()
        return names[1] if self.positive is None and len(names) == 2 else self.positive

    @property
    def text_columns(self) -> set[str]:
        """The columns of a row that fields and choices read."""
        columns = [column for name, column in self.columns.items() if name != LABEL]
        return {part for column in columns for part in _named(column)}

    def without_labels(self) -> "Task":
        """Returns the task as prediction uses it: the label column is never read."""
        columns = {name: column for name, column in self.columns.items() if name != LABEL}
        return replace(self, columns=columns)

    def without_prompt(self) -> "Task":
        """Returns the task without its prompt and the columns that only the prompt reads."""
        names = {*self.format.fields, CHOICES, LABEL}
        columns = {name: column for name, column in self.columns.items() if name in names}
        task = replace(self, prompt=None, columns=columns, values={})
        values = {name: words for name, words in self.values.items() if name in task.text_columns}
        return replace(task, values=values)

    def example(self, row: Row, id: str, *, labelled: bool = True) -> Example:
        """The row as an example; RowError says which column is wrong.

        With `labelled=False` a missing label is fine, and a present one is still read.
        """
        row = self.read(row) if self.read else row
        texts = {name for name in self.columns if name not in (CHOICES, LABEL)}
        fields = {name: self._text(row, str(self.columns[name]), name) for name in sorted(texts)}
        choices = self._choices(row)
        label = self._label(row)
        if label is None and labelled:
            raise self._no_label(row)
        if self.format.chooses and label is not None and label >= len(choices):
            raise RowError(
                f"label {self.labels.name(label)!r} names choice {int(label) + 1} of {len(choices)}"
            )
        return Example(id, fields, choices, label)

    def _choices(self, row: Row) -> tuple[str, ...]:
        if not self.format.chooses:
            return ()
        column = self.columns[CHOICES]
        texts = self._parts(row, column)
        if len(texts) < 2:
            raise RowError(f"{len(texts)} choices in column {column!r}", cure="Two are the fewest.")
        most = len(self.labels.names) if isinstance(self.labels, Classes) else 0
        if len(texts) > most:
            raise RowError(f"{len(texts)} choices but {most} labels", cure="Extend task.labels.")
        return texts

    def _parts(self, row: Row, column: Column) -> tuple[str, ...]:
        if isinstance(column, str):
            return _listed(row, column)
        return tuple(self._text(row, part, f"{CHOICES}[{k}]") for k, part in enumerate(column))

    def _text(self, row: Row, column: str, field_name: str) -> str:
        """A field's text, without blanks at its ends: SST-2's train rows end in one, not others."""
        template = column if templates.is_template(column) else f"{{{column}}}"
        words = {name: self._word(row, name) for name in templates.names(template)}
        text = templates.fill(template, words).strip()
        if not text:
            raise RowError(
                f"empty text for {field_name!r} in column {column!r}", cure="Fill it in."
            )
        return text

    def _word(self, row: Row, name: str) -> str:
        """What a column holds, or the word that stands for it."""
        held = _plain(_get(row, name), name)
        words = self.values.get(name)
        if words is None:
            return held
        if held not in words:
            raise RowError(
                f"{held!r} in column {name!r} is not in task.values", cure=suggest(held, words)
            )
        return words[held]

    def _label(self, row: Row) -> Label:
        if LABEL not in self.columns:
            return None
        column = str(self.columns[LABEL])
        value = _get(row, column) if _has(row, column) else None
        text = as_text(value)
        # The hub marks unlabelled rows with -1 (GLUE's test splits; -1.0 where labels are scores).
        missing = text in ("-1", "-1.0") and not self._knows("-1")
        if text == "" or missing or text in self.unlabelled:
            return None
        return self.labels.parse(value)

    def _knows(self, text: str) -> bool:
        if isinstance(self.labels, Range):
            return self.labels.low <= float(text)
        return text in self.labels.raw or text in self.labels.names

    def _no_label(self, row: Row) -> RowError:
        column = str(self.columns.get(LABEL, ""))
        if column and not _has(row, column):
            return _no_column(row, column)
        return RowError("no label", cure="Give the row a label, or predict on it instead.")


def _check(name: str, column: Column) -> None:
    """UsageError where a column is written wrongly."""
    where = f"task.columns.{name}"
    if not isinstance(column, str):
        if name != CHOICES:
            raise UsageError("this is a list", where=where, cure="Only choices can be a list.")
        for part in column:
            _check(name, part)
    elif templates.is_template(column):
        if name == LABEL:
            raise UsageError("a label is no template", where=where, cure="Name one column.")
        templates.names(column)


def _named(column: Column) -> tuple[str, ...]:
    """The columns of a row that a field is made of."""
    parts = [column] if isinstance(column, str) else column
    found = [templates.names(part) if templates.is_template(part) else (part,) for part in parts]
    return tuple(name for names in found for name in names)


def _get(row: Row, name: str) -> Any:
    try:
        return templates.look_up(row, name)
    except KeyError:
        raise _no_column(row, name) from None


def _has(row: Row, name: str) -> bool:
    try:
        templates.look_up(row, name)
    except KeyError:
        return False
    return True


def _no_column(row: Row, name: str) -> RowError:
    return RowError(f"no column {name!r}", cure=suggest(name, map(str, row)))


def _listed(row: Row, column: str) -> tuple[str, ...]:
    values = _get(row, column)
    if not isinstance(values, list | tuple) and not hasattr(values, "tolist"):
        raise RowError(
            f"column {column!r} holds {values!r}, not a list of choices",
            cure="For choices in columns of their own write choices: [ending1, ending2].",
        )
    texts = tuple(_plain(value, f"{column}[{k}]") for k, value in enumerate(values))
    for k, text in enumerate(texts):
        if not text:
            raise RowError(f"choice {k + 1} in column {column!r} is empty", cure="Fill it in.")
    return texts


def _plain(value: Any, name: str) -> str:
    # A missing value is None, or in tables from pandas a NaN; the words "nan" and "n/a" are text.
    if value is None or (isinstance(value, Real) and math.isnan(value)):
        raise RowError(f"column {name!r} is empty", cure="Fill it in.")
    if isinstance(value, list | tuple | Mapping | bytes):
        raise RowError(f"column {name!r} holds a {type(value).__name__}, not a text")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"column {name!r} holds half of a surrogate pair at character {error.start + 1}"
        raise RowError(
            what, cure="It is no text: read it as UTF-8 with errors='replace'."
        ) from None
    return text


__all__ = ["CHOICE", "CHOICES", "LABEL", "Column", "Task"]
