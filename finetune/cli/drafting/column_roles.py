"""Which column of a file is the label, which hold choices, and which are read as texts."""

import re
from collections.abc import Sequence

from finetune.cli.drafting.columns import Column
from task_formats import UsageError

MOST_CLASSES = 200
LABEL_NAMES = (
    "label", "labels", "gold_label", "class", "category", "target", "is_duplicate", "sentiment",
    "intent", "topic", "answerkey", "answer_key", "answerrightending", "correct", "gold",
    "quality", "score", "similarity", "rating", "stars", "grade", "emotion", "y",
)  # fmt: skip
"""The likeliest first."""
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"),
    ("first", "second"), ("question", "sentence"), ("question", "passage"), ("query", "passage"),
    ("query", "document"), ("question", "answer"), ("context", "response"),
)  # fmt: skip
"""Columns that belong together, in the order they are read."""
_IDS = re.compile(r"(^|_|\.)(id|ids|idx|index|guid|uid|uuid|key|number|no|row)$|^unnamed|id$", re.I)
_NOT_TEXT = re.compile(r"parse|genre|date|time|url|author|user|source|split", re.I)
_CHOICES = re.compile(r"choice|option|ending|alternative|candidate|answer|quiz|sol", re.I)
_NUMBERED = re.compile(r"^(?P<stem>.*?)[ _.-]?(\d|[A-Ea-e])$")
_MARK = re.compile(r"\d+|(?<=[_ .-])[ABab]$")


def find_label(columns: Sequence[Column]) -> Column:
    """The column with a label's name, or with the fewest different short values."""
    by_name = {column.name.lower().replace(" ", "_"): column for column in columns}
    known = [by_name[name] for name in LABEL_NAMES if name in by_name]
    usable = [column for column in known if column.is_number or column.repeats]
    if usable:
        return usable[0]
    few = [column for column in columns if _could_be_label(column)]
    if not few:
        names = ", ".join(column.name for column in columns)
        raise UsageError("found no label column", cure=f"Name it with --label. Columns: {names}.")
    return min(reversed(few), key=lambda column: len(column.values))


def _could_be_label(column: Column) -> bool:
    few = column.repeats and 2 <= len(column.values) <= MOST_CLASSES
    return few and column.mean_words <= 3 and not _NOT_TEXT.search(column.name)


def find_choices(columns: Sequence[Column], gold: Column) -> tuple[str, ...]:
    """Columns that hold the choices: one of lists, or several with numbered names; or none."""
    lists = [column for column in columns if column.is_list and _CHOICES.search(column.name)]
    # ARC has the choices' texts and their letters side by side.
    texts = [column for column in lists if not column.name.endswith(".label")]
    if texts and _names_choices(gold, texts[0].longest):
        return (texts[0].name,)
    groups: dict[str, list[str]] = {}
    for column in columns:
        match = None if column.is_list else _NUMBERED.match(column.name)
        if match and (_CHOICES.search(match["stem"]) or not match["stem"]):
            groups.setdefault(match["stem"], []).append(column.name)
    best = max(groups.values(), key=len, default=[])
    return tuple(best) if len(best) > 1 and _names_choices(gold, len(best)) else ()


def _names_choices(gold: Column, count: int) -> bool:
    """True when the labels are 0..K-1, 1..K or A.. for K choices."""
    seen = set(gold.values)
    numbers = [{str(k + first) for k in range(count)} for first in (0, 1)]
    return bool(seen) and any(seen <= known for known in (*numbers, set(letters(count))))


def letters(count: int) -> list[str]:
    """A, B, C, ..."""
    return [chr(ord("A") + k) for k in range(min(count, 26))]


def find_texts(columns: Sequence[Column], wanted: int | None) -> list[str]:
    """The `wanted` columns that are read, in order; without a number one, or two that pair up."""
    texts = [column for column in columns if _is_text(column)]
    names = [column.name for column in texts]
    pair = _pair(names) if wanted != 1 else []
    if pair:
        return pair
    longest = sorted(texts, key=lambda column: -column.mean_words)[: wanted or 1]
    return [column.name for column in texts if column in longest]


def _pair(names: Sequence[str]) -> list[str]:
    by_name = {name.lower().replace(" ", "_"): name for name in names}
    for pair in PAIRS:
        if all(name in by_name for name in pair):
            return [by_name[name] for name in pair]
    # "#1 String" and "#2 String", "text_a" and "text_b".
    marked = [_MARK.sub("#", name) for name in names]
    twins = [name for name, mark in zip(names, marked, strict=True) if marked.count(mark) > 1]
    return twins if len(twins) == 2 else []


def _is_text(column: Column) -> bool:
    if column.is_number or column.is_list or not column.filled or _IDS.search(column.name):
        return False
    single = column.mean_words < 1.5 and column.name.lower() not in ("text", "sentence", "word")
    return not single and not _NOT_TEXT.search(column.name)
