"""How the page of a report shows a row: its texts, its label and the answers of the runs."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import LocatedExample
from finetune.models.token_views import TokenView, list_templates
from finetune.reports.evaluated_run import EvaluatedRun, Predictions
from task_formats import Example, MultiLabel, Range, Task

MAX_TEXT, MAX_REMOVED = 2000, 200
"""Characters shown of a text, and of a text that truncation removed."""
_MAX_PAGE_TEXT = 200_000
"""Characters of all texts of a page; 600 kB in scripts with three bytes for each."""
_NUM_FIELD_COLORS = 4
ViewTokens = Callable[[Example], list[TokenView]]


class Span(NamedTuple):
    """A part of a view with one meaning."""

    kind: str
    """special, removed, or field-N for the Nth template."""
    text: str
    title: str = ""


class ShownRow(NamedTuple):
    """A row as the page shows it."""

    id: str
    place: str
    """File and line."""
    label: str
    answers: list[dict[str, Any]]
    """For each run: its name, its answer, whether that is right, and a remark with numbers."""
    views: list[list[Span]]
    choices: list[dict[str, Any]]
    """The choices of a row of multiple choice."""


def show_row(
    runs: Sequence[EvaluatedRun],
    matched: Sequence[Predictions],
    row: int,
    item: LocatedExample,
    view_tokens: ViewTokens,
    max_text: int = MAX_TEXT,
) -> ShownRow:
    """Returns a row with its texts and the answers of all runs.

    Args:
        runs: The runs.
        matched: Their predictions, on the same rows.
        row: Index of the row in them.
        item: The row itself.
        view_tokens: Gives the views of an example as the first run reads them.
        max_text: Characters shown of each text.
    """
    task, example = runs[0].task, item.example
    return ShownRow(
        example.id,
        str(item.location),
        _show_label(task, matched[0].gold[row]),
        [_show_answer(run, rows, row) for run, rows in zip(runs, matched, strict=True)],
        shown_views(view_tokens(example), task, max_text),
        _show_choices(example, runs, matched, row, max_text),
    )


def choose_max_text(items: Sequence[LocatedExample]) -> int:
    """Returns the characters to show of each text, so that the page stays small."""
    texts = sum(len(item.example.fields) + len(item.example.choices) for item in items)
    return min(MAX_TEXT, _MAX_PAGE_TEXT // max(texts, 1))


def _show_answer(run: EvaluatedRun, rows: Predictions, row: int) -> dict[str, Any]:
    """A run's answer, and its probability or its difference from the score."""
    gold, answer, table = rows.gold[row], rows.predicted[row], rows.probabilities
    right, labels = bool(rows.correct[row]), run.task.labels
    if table is None:
        sign = "+" if answer > gold else ""
        remark = f"{sign}{format_number(answer - gold, 3)}"
    elif isinstance(labels, MultiLabel):
        remark = _describe_wrong_labels(answer, gold, table[row], labels.names)
    else:
        remark = f"probability {table[row, answer]:.3f}"
        remark += "" if right else f", of the label {table[row, gold]:.3f}"
    label = _show_label(run.task, answer)
    return {"run": run.name, "right": right, "answer": label, "remark": remark}


def _show_choices(
    example: Example,
    runs: Sequence[EvaluatedRun],
    matched: Sequence[Predictions],
    row: int,
    max_text: int,
) -> list[dict[str, Any]]:
    """The choices of a row, with the first run's probabilities and who chose them."""
    table = matched[0].probabilities
    return [
        {
            "name": runs[0].task.labels.name(k),
            "text": clip(text, max_text),
            "right": k == matched[0].gold[row],
            "chosen_by": [
                run.name
                for run, rows in zip(runs, matched, strict=True)
                if rows.predicted[row] == k
            ],
            "probability": float(table[row, k]) if table is not None else None,
        }
        for k, text in enumerate(example.choices)
    ]


def _show_label(task: Task, label: Any) -> str:
    """A label, the names of several, or a score."""
    if isinstance(task.labels, Range):
        return format_number(label, 3).rstrip("0").rstrip(".")
    name = task.labels.name(label)
    return name if isinstance(name, str) else ", ".join(name) or "no label"


def _describe_wrong_labels(
    answer: NDArray[Any], gold: NDArray[Any], probability: NDArray[Any], names: Sequence[str]
) -> str:
    """The labels that are missing or too many, with their probabilities."""
    parts = []
    for word, wrong in (("missing", gold > answer), ("too many", answer > gold)):
        listed = [f"{names[k]} {probability[k]:.3f}" for k in np.flatnonzero(wrong).tolist()]
        parts += [f"{word}: {', '.join(listed)}"] if listed else []
    return "; ".join(parts)


def shown_views(
    views: Sequence[TokenView], task: Task, max_text: int = MAX_TEXT
) -> list[list[Span]]:
    """Returns the views as spans: each text once, and without choices, which are listed apart."""
    templates = list_templates(task.format)
    hidden = {n for n, template in enumerate(templates) if "{choice}" in template}
    shown, seen = [], set(hidden)
    for view in views[:1] if task.format.is_multiple_choice else views:
        fields = {token.template_index for token in view.tokens} - {None}
        if fields <= seen:
            continue
        seen |= {index for index in fields if index is not None}
        shown.append(_make_spans(view, hidden, max_text))
    return shown


def _make_spans(view: TokenView, hidden: set[int], max_text: int) -> list[Span]:
    spans: list[Span] = []

    def add(kind: str, text: str, title: str = "") -> None:
        if spans and spans[-1].kind == kind and kind.startswith("field"):
            text = spans.pop().text + text
        spans.append(Span(kind, text, title))

    for n, token in enumerate(view.tokens):
        index, before = token.template_index, view.tokens[n - 1].template_index
        if n in view.later and before is not None:
            add(f"field-{before % _NUM_FIELD_COLORS}", view.later[n][1])
        if n in view.removed and not _is_hidden(view, n, hidden):
            number, text = view.removed[n]
            add("removed", clip(text, MAX_REMOVED), f"{number:,} tokens removed by truncation")
        if index is None:
            add("special", token.text)
        elif index not in hidden:
            add(f"field-{index % _NUM_FIELD_COLORS}", token.text)
    # A delimiter before a hidden choice has nothing after it.
    kept = [
        span
        for span, following in pairwise([*spans, None])
        if span
        and not (span.text == "D" and span.kind == "special" and following == Span("special", "E"))
    ]
    return [span._replace(text=clip(span.text, max_text)) for span in kept]


def _is_hidden(view: TokenView, place: int, hidden: set[int]) -> bool:
    before = view.tokens[place - 1].template_index if place else None
    return before in hidden


def clip(text: str, limit: int) -> str:
    """Shortens a long text, and says by how much.

    >>> clip("abcdef", 4)
    'abcd … (2 more characters)'
    """
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def format_number(value: float, digits: int = 4) -> str:
    """Digits after the point as in `gptft evaluate`, with a proper minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")
