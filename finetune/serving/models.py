"""Requests and responses of a task as pydantic models, which validate them and make the OpenAPI."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from finetune.models.token_views import TokenView
from task_formats import MultiLabel, Prediction, Range, Task
from task_formats.task import CHOICES
from task_formats.templates import field_names, is_template, look_up


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "Text must not be empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
"""A text that is not blank."""


class RowModel(BaseModel):
    """Base class of the rows of a task; further keys, such as a label, are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, row: Any) -> Any:
        """Finds columns such as `question.stem` in nested rows."""
        if not isinstance(row, Mapping):
            return row
        found = {}
        for field in cls.model_fields.values():
            try:
                found[field.alias] = look_up(row, str(field.alias))
            except KeyError:
                continue
        return {**row, **found}


def make_row_model(task: Task) -> type[BaseModel]:
    """Builds the model of one row: a field for each column that the task reads.

    Args:
        task: The task, without label and prompt.

    Returns:
        A model whose aliases are the columns; dump it with `by_alias` to get the row. It takes any
        row if Python code of the task reads it.
    """
    if task.convert_row is not None:
        return create_model("Row", __config__=ConfigDict(extra="allow"))
    columns: dict[str, tuple[Any, Any]] = {}
    for name in (*task.format.fields, *([CHOICES] if task.format.is_multiple_choice else [])):
        column = task.columns[name]
        if name == CHOICES and isinstance(column, str):
            columns[column] = (list[Text], Field(min_length=2, max_length=task.labels.num_outputs))
            continue
        for part in [column] if isinstance(column, str) else column:
            for inner in field_names(part) if is_template(part) else (part,):
                # One column of several in a template may be empty.
                kind: Any = str if is_template(part) else Text
                if words := task.values.get(inner):
                    kind = Literal[tuple(words)]
                if columns.get(inner, (str,))[0] is str:
                    columns[inner] = (kind, Field())
    # Columns may have any name; those of Python attributes may not.
    fields: dict[str, Any] = {
        f"column_{n}": (Annotated[kind, constraint], Field(alias=column, title=column))
        for n, (column, (kind, constraint)) in enumerate(columns.items())
    }
    return create_model("Row", __base__=RowModel, **fields)


def make_body_type(row_model: type[BaseModel], max_rows: int) -> Any:
    """Builds the type of a request: one row, or a list of at most `max_rows`."""
    rows_type = Annotated[list[row_model], Field(min_length=1, max_length=max_rows)]  # type: ignore[valid-type]
    return Annotated[
        Annotated[row_model, Tag("row")] | Annotated[rows_type, Tag("rows")],
        Discriminator(lambda body: "rows" if isinstance(body, list) else "row"),
    ]


def make_prediction_model(task: Task) -> type[BaseModel]:
    """Builds the model of a prediction: a label or labels and probabilities, or a score."""
    if isinstance(task.labels, Range):
        low, high = task.labels.low, task.labels.high
        about = f"Trained on scores from {low:g} to {high:g}; not clipped."
        return create_model("Prediction", score=(float, Field(description=about)))
    names: Any = Literal[task.labels.names]
    found: dict[str, Any] = {"label": (names, ...)}
    if isinstance(task.labels, MultiLabel):
        found = {"labels": (list[names], ...)}
    return create_model("Prediction", **found, probabilities=(dict[names, float], ...))


def describe(prediction: Prediction, task: Task) -> dict[str, Any]:
    """Returns a prediction as plain values for JSON."""
    if isinstance(task.labels, Range):
        return {"score": prediction.label}
    # A row may have fewer choices than the task has labels.
    probabilities = dict(zip(task.labels.names, prediction.scores, strict=False))
    if isinstance(prediction.label, tuple):
        return {"labels": list(prediction.label), "probabilities": probabilities}
    return {"label": prediction.label, "probabilities": probabilities}


class TokenModel(BaseModel):
    """One token of a view."""

    text: str
    """The text that it stands for; S, D or E for a special token."""
    template: int | None
    """Which text of the format it belongs to, from 0; null for a special token."""
    unknown: bool = False
    """Whether the tokenizer does not know it."""


class ViewModel(BaseModel):
    """One token sequence that the model reads; the head reads at its last token."""

    tokens: list[TokenModel]
    removed_tokens: int
    """Tokens that truncation removed."""
    later_tokens: int = 0
    """Tokens that are read in further windows."""

    @classmethod
    def of(cls, view: TokenView) -> "ViewModel":
        """Returns the model of a view."""
        tokens = [
            TokenModel(text=token.text, template=token.template_index, unknown=token.is_unknown)
            for token in view.tokens
        ]
        return cls(
            tokens=tokens, removed_tokens=view.removed_tokens, later_tokens=view.later_tokens
        )
