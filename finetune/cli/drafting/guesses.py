"""From the columns of a file to the likeliest task, with the reason."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.cli.drafting.column_roles import (
    MOST_CLASSES,
    find_choices,
    find_label,
    find_texts,
    letters,
)
from finetune.cli.drafting.columns import Column
from task_formats import UsageError, suggest

_SYMMETRIC = re.compile(r"dupl|para|simil|equiv|same|match", re.I)
_TEXTS = {"classification": 1, "entailment": 2, "similarity": 2, "multiple_choice": 9}
"""How many texts a kind reads; for choices, the most that make up a context."""
_FIELDS = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
}
_REASONS = {
    "classification": "one text",
    "entailment": "two texts, in this order",
    "similarity": "two texts, alike or not",
    "multiple_choice": "choices to pick from",
}


@dataclass(frozen=True)
class Guess:
    """A task in the words of a recipe, and what a reader wants to know besides."""

    format: str
    columns: dict[str, str | tuple[str, ...]]
    used: tuple[str, ...]
    """Every column that is read."""
    counts: dict[str, int]
    """Rows of every label value, in the order of the recipe; empty for a score."""
    range: tuple[float, float] | None
    metrics: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why this format."""
        return _REASONS[self.format]


def guess(
    columns: Sequence[Column],
    *,
    format: str | None = None,
    label: str | None = None,
    texts: Sequence[str] = (),
) -> Guess:
    """The likeliest task; what the caller already knows is taken as it is.

    Raises UsageError where a column is not there, no label or no text is found, or the parts
    do not make a task.
    """
    named = {column.name: column for column in columns}
    read = [*texts, *([label] if label else [])]
    for name in read:
        if name not in named:
            raise UsageError(f"no column {name!r}", cure=suggest(name, named))
    if twice := [name for name in read if read.count(name) > 1]:
        what = f"the column {twice[0]!r} is named twice"
        raise UsageError(what, cure="Give every --text and --label another column.")
    gold = named[label] if label else find_label(columns)
    others = [column for column in columns if column is not gold]
    may_choose = format in (None, "multiple_choice")
    choices = find_choices(others, gold) if may_choose else ()
    kept = [column for column in others if column.name not in choices]
    wanted = _TEXTS["multiple_choice"] if choices else _TEXTS.get(format or "")
    found = list(texts) or find_texts(kept, wanted)
    kind = _kind(format, found, choices, gold, named)
    fields = _fields(kind, found, choices, named)
    counts = {} if _is_score(gold) and not choices else _count(gold, choices, named)
    return Guess(
        kind,
        {**fields, "label": gold.name},
        (*found, *choices, gold.name),
        counts,
        None if counts else (math.floor(gold.low), math.ceil(gold.high)),
        _metrics(list(counts.values()), chooses=bool(choices)),
    )


def _kind(
    asked: str | None,
    texts: Sequence[str],
    choices: Sequence[str],
    gold: Column,
    named: dict[str, Column],
) -> str:
    if asked == "multiple_choice" and not choices:
        cure = "Put them into one column as lists, or into columns choice1, choice2, ..."
        raise UsageError("found no choices", cure=cure)
    if not texts:
        cure = f"Name it with --text. Columns: {', '.join(named)}."
        raise UsageError("found no text column", cure=cure)
    if choices:
        return "multiple_choice"
    if len(texts) not in {_TEXTS[asked]} if asked else len(texts) > 2:
        raise UsageError(
            f"{asked or 'a task'} does not read {len(texts)} texts",
            cure="Name one text with --text, or two by giving --text twice.",
        )
    if asked or len(texts) == 1:
        return asked or "classification"
    symmetric = any(map(_SYMMETRIC.search, (gold.name, *gold.values)))
    return "similarity" if symmetric or _is_score(gold) else "entailment"


def _fields(
    kind: str, texts: Sequence[str], choices: tuple[str, ...], named: dict[str, Column]
) -> dict[str, str | tuple[str, ...]]:
    """Field to column, as a recipe says it."""
    if not choices:
        return dict(zip(_FIELDS[kind], texts, strict=True))
    context = texts[0] if len(texts) == 1 else " ".join(f"{{{name}}}" for name in texts)
    return {"context": context, "choices": choices[0] if named[choices[0]].is_list else choices}


def _is_score(gold: Column) -> bool:
    return gold.is_number and (not gold.is_whole or len(gold.values) > 20)


def _count(gold: Column, choices: tuple[str, ...], named: dict[str, Column]) -> dict[str, int]:
    """Rows of every label; those of choices that are never right are there with 0."""
    labels = _all_choices(gold, choices, named) if choices else sorted(gold.values, key=_order)
    if not 2 <= len(labels) <= MOST_CLASSES:
        raise UsageError(
            f"column {gold.name!r} has {len(labels)} different values, too "
            + ("few" if len(labels) < 2 else "many for classes"),
            cure="Name the column with the labels: --label NAME.",
        )
    return {label: gold.values[label] for label in labels}


def _all_choices(gold: Column, choices: tuple[str, ...], named: dict[str, Column]) -> list[str]:
    lists = named[choices[0]].is_list
    count = named[choices[0]].longest if lists else len(choices)
    first = 0 if "0" in gold.values else 1
    return [str(k + first) for k in range(count)] if gold.is_number else letters(count)


def _metrics(counts: Sequence[int], *, chooses: bool) -> tuple[str, ...]:
    """Accuracy; where a class is rare, also a metric that does not overlook it."""
    if not counts:
        return ("pearson", "spearman")
    rare = 2 * min(counts) * len(counts) < sum(counts) and not chooses
    return ("accuracy", "macro_f1") if rare else ("accuracy",)


def _order(label: str) -> tuple[int, float, str]:
    """Numbers by value, then words by alphabet."""
    try:
        return (0, float(label), "")
    except ValueError:
        return (1, 0.0, label)
