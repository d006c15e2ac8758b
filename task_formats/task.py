"""A task: how a row becomes an example, and what its label can be."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from numbers import Real
from typing import Any

from task_formats import templates
from task_formats.errors import RowError, UsageError, suggest
from task_formats.example import Example, Label, Row
from task_formats.formats import Format
from task_formats.labels import (
    Classes,
    Labels,
    MultiLabel,
    Range,
    as_text,
    clean_answer,
    normalize_label,
    parse_list,
)
from task_formats.prompts import Prompt
from task_formats.windows import Windows

CHOICES, LABEL = "choices", "label"

Column = str | Sequence[str]
"""A column's name, a template over columns, or for choices a list of these. A task with several
labels may have a column for each of them."""


@dataclass(frozen=True)
class Task:
    """A task, for fine-tuning, prediction and prompting alike.

    Args:
        format: The views of an example.
        columns: Field of the format, `choices` or `label` to the column that holds it.
        labels: Classes, several labels at once, or the range of a score.
        metrics: Names of metrics; the first one selects the best model.
        positive: The class that F1 counts.
        prompt: The task in words, for zero- and few-shot evaluation.
        values: Words that replace a column's values: {"question": {"cause": "because"}}.
        unlabelled: Raw labels that mean "no label" in this data set (SNLI's "-").
        convert_row: Turns a row into another one before `columns` are looked up.
        windows: How texts that are longer than the model reads are read; None truncates them.

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
    convert_row: Callable[[Row], Row] | None = None
    windows: Windows | None = None

    def __post_init__(self) -> None:
        if self.format.is_multiple_choice and not isinstance(self.labels, Classes):
            what = "multiple choice needs labels, not a range or several labels at once"
            raise UsageError(what, cure="Set only task.labels.")
        is_ordered = isinstance(self.labels, Classes) and self.labels.ordered
        if is_ordered and (self.format.is_multiple_choice or self.labels.num_outputs < 3):
            what = "an order needs at least three labels that are no choices"
            raise UsageError(what, cure="Leave task.ordinal out.")
        is_soft = isinstance(self.labels, Classes) and self.labels.soft
        if is_soft and self.format.is_multiple_choice:
            what = "choices cannot have probabilities for labels"
            raise UsageError(what, cure="Leave task.soft_labels out.")
        if self.prompt and (is_soft or isinstance(self.labels, MultiLabel)):
            what = f"a prompt cannot answer with {'probabilities' if is_soft else 'several labels'}"
            raise UsageError(what, cure="Leave it out.")
        self._check_columns()
        if self.prompt:
            fields = sorted(set(self.columns) - {CHOICES, LABEL})
            prompt = self.prompt.bind(self.format.is_multiple_choice, self.labels, fields)
            object.__setattr__(self, "prompt", prompt)

    def _check_columns(self) -> None:
        needed = {*self.format.fields, *([CHOICES] if self.format.is_multiple_choice else [])}
        for name in sorted(needed - set(self.columns)):
            what = f"{name!r} is missing in task.columns"
            raise UsageError(what, cure=f"The format uses {sorted(needed)}.")
        used = {*needed, LABEL, *(self.prompt.fields if self.prompt else ())}
        for name in sorted(set(self.columns) - used):
            what = f"{name!r} in task.columns is not used"
            raise UsageError(what, cure=suggest(name, {*needed, LABEL}))
        for name, column in self.columns.items():
            where = f"task.columns.{name}"
            if name == LABEL and not isinstance(column, str):
                self._check_label_columns(column)
            elif not isinstance(column, str) and name != CHOICES:
                cure = "Only choices can be a list."
                raise UsageError("must not be a list", where=where, cure=cure)
            if name == LABEL and templates.is_template(str(column)):
                raise UsageError("must not be a template", where=where, cure="Name one column.")
        for name in sorted(set(self.values) - self.text_columns):
            what = f"{name!r} in task.values is not used"
            raise UsageError(what, cure=suggest(name, self.text_columns))

    def _check_label_columns(self, columns: Sequence[str]) -> None:
        where = f"task.columns.{LABEL}"
        is_soft = isinstance(self.labels, Classes) and self.labels.soft
        if isinstance(self.labels, Range) or not (is_soft or isinstance(self.labels, MultiLabel)):
            cure = "Set task.multi_label or task.soft_labels for a column of each label."
            raise UsageError("must not be a list", where=where, cure=cure)
        for column in columns:
            if column not in self.labels.raw and column not in self.labels.names:
                cure = suggest(column, self.labels.raw)
                raise UsageError(f"{column!r} is not one of task.labels", where=where, cure=cure)

    @property
    def positive_class(self) -> str | None:
        """The class that F1 counts: `positive`, or the second of two classes."""
        names = self.labels.names if isinstance(self.labels, Classes) else ()
        return names[1] if self.positive is None and len(names) == 2 else self.positive

    @property
    def text_columns(self) -> set[str]:
        """The columns of a row that fields and choices read."""
        columns = [column for name, column in self.columns.items() if name != LABEL]
        names = [[column] if isinstance(column, str) else column for column in columns]
        return {name for column in chain(*names) for name in _referenced_columns(column)}

    def missing_columns(self, row: Row) -> list[str]:
        """The columns that fields and choices read and the row does not have."""
        row = self.convert_row(row) if self.convert_row else row
        names = [column for name, column in self.columns.items() if name != LABEL]
        columns = chain(*([name] if isinstance(name, str) else name for name in names))
        read = chain(*([c] if c in row else _referenced_columns(c) for c in columns))
        return [column for column in dict.fromkeys(read) if not _has_column(row, column)]

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
        """Turns a row into an example. `labelled=False` accepts rows without a label.

        Raises:
            RowError: A column is missing, empty or invalid, or a label is missing or unknown.
        """
        row = self.convert_row(row) if self.convert_row else row
        fields = {name: self._text(row, column, name) for name, column in self._field_columns}
        choices = self._choices(row) if self.format.is_multiple_choice else ()
        label = self._label(row, labelled, choices)
        if choices and isinstance(label, int) and label >= len(choices):
            name, number = self.labels.name(label), label + 1
            raise RowError(f"label {name!r} is choice {number} of {len(choices)}")
        return Example(id, fields, choices, label)

    @cached_property
    def _field_columns(self) -> list[tuple[str, str]]:
        """Every field of an example, in alphabetical order, and its column."""
        names = sorted(set(self.columns) - {CHOICES, LABEL})
        return [(name, str(self.columns[name])) for name in names]

    def _choices(self, row: Row) -> tuple[str, ...]:
        column = self.columns[CHOICES]
        if isinstance(column, str):
            values = parse_list(_look_up(row, column))
            if not isinstance(values, list | tuple):
                what = f"column {column!r} must hold a list of choices (got {values!r})"
                cure = "For choices in separate columns write choices: [ending1, ending2]."
                raise RowError(what, cure=cure)
            choices = tuple(_to_text(value, f"{column}[{k}]") for k, value in enumerate(values))
        else:
            # A row may have fewer choices than there are columns.
            count = len(column)
            while count > 2 and column[count - 1] in row and not as_text(row[column[count - 1]]):
                count -= 1
            pairs = enumerate(column[:count])
            choices = tuple(self._text(row, c, f"{CHOICES}[{k}]") for k, c in pairs)
        if "" in choices:
            number = choices.index("") + 1
            raise RowError(f"choice {number} in column {column!r} is empty", cure="Fill it in.")
        if len(choices) < 2:
            what = f"{len(choices)} choices in column {column!r}"
            raise RowError(what, cure="Give at least two choices.")
        if len(choices) > self.labels.num_outputs:
            what = f"{len(choices)} choices but {self.labels.num_outputs} labels"
            raise RowError(what, cure="Extend task.labels.")
        return choices

    def _text(self, row: Row, column: str, field_name: str) -> str:
        """A field's text, without blanks at its ends: only SST-2's training rows end in one."""
        if column in row or not templates.is_template(column):
            text = self._value(row, column)
        else:
            values = {name: self._value(row, name) for name in templates.field_names(column)}
            text = templates.fill(column, values).strip()
        if not text:
            what = f"empty text for {field_name!r} in column {column!r}"
            raise RowError(what, cure="Fill it in.")
        return text

    def _value(self, row: Row, name: str) -> str:
        """A column's value, or the word that replaces it."""
        value = _to_text(_look_up(row, name), name)
        words = self.values.get(name)
        if words is not None and value not in words:
            what = f"{value!r} in column {name!r} is not in task.values"
            raise RowError(what, cure=suggest(value, words))
        return words[value] if words else value

    def _label(self, row: Row, labelled: bool, choices: Sequence[str]) -> Label:
        column, value = self.columns.get(LABEL, ""), None
        with suppress(KeyError):
            if not isinstance(column, str):
                flags = {name: templates.look_up(row, name) for name in column}
                value = flags if any(map(as_text, flags.values())) else None
            elif column:
                value = templates.look_up(row, column)
        text = as_text(value)
        # The hub marks unlabelled rows with -1 (GLUE's test splits; -1.0 where labels are scores).
        if text in ("-1", "-1.0") and text not in self.unlabelled:
            with suppress(RowError):
                return self.labels.parse("-1")
            text = ""
        if text and text not in self.unlabelled:
            return self._parse_answer(text, choices) if choices else self.labels.parse(value)
        for name in [column] if isinstance(column, str) else column:
            if labelled and name:
                _look_up(row, name)  # names a missing column
        if labelled:
            raise RowError("no label", cure="Give the row a label, or predict on it instead.")
        return None

    def _parse_answer(self, answer: str, choices: Sequence[str]) -> Label:
        """The index of a choice by its label in any case of letters, or by its text."""
        try:
            return self.labels.parse(answer)
        except RowError:
            folded, normalized = clean_answer(answer).casefold(), normalize_label(answer)
            names = [*self.labels.names, *getattr(self.labels, "raw", ())]
            found = {self.labels.parse(name) for name in names if name.casefold() == folded}
            texts = {k for k, text in enumerate(choices) if normalize_label(text) == normalized}
            if len(found or texts) != 1:
                raise
            return (found or texts).pop()


def _referenced_columns(column: str) -> Sequence[str]:
    return templates.field_names(column) if templates.is_template(column) else [column]


def _has_column(row: Row, name: str) -> bool:
    try:
        templates.look_up(row, name)
    except KeyError:
        return False
    return True


def _look_up(row: Row, name: str) -> Any:
    try:
        return templates.look_up(row, name)
    except KeyError:
        raise RowError(f"no column {name!r}", cure=suggest(name, map(str, row))) from None


def _to_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        # A missing value is None, or a NaN in tables from pandas; words such as "nan" are text.
        if value is None or (isinstance(value, Real) and math.isnan(value)):
            raise RowError(f"column {name!r} is empty", cure="Fill it in.")
        if isinstance(value, list | tuple | Mapping | bytes):
            raise RowError(f"column {name!r} must hold text (got a {type(value).__name__})")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"column {name!r} holds half of a surrogate pair at character {error.start + 1}"
        raise RowError(what, cure="Read the data as UTF-8 with errors='replace'.") from None
    return text
