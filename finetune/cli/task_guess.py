"""Guesses the task of a file from the names and types of its columns, for `gptft new`."""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune.cli.columns import CHOICE_WORDS, LETTERS, NUMBER_IN_NAME, Column, group_choices
from task_formats import UsageError, suggest
from task_formats.labels import clean_answer, find_typing_errors

_MAX_CLASSES = 200
"""More classes than this are believed only in a column with a usual name or one that is given."""
_LABEL_NAMES = (
    "label", "labels", "gold_label", "class", "category", "target", "is_duplicate", "sentiment",
    "intent", "topic", "answerkey", "answerrightending", "correct", "gold", "quality", "score",
    "similarity", "rating", "stars", "emotion", "emotions", "tags", "genres", "categories",
    "topics", "intents", "cop", "answer", "answer_key", "answer_idx", "answer_index",
    "correct_answer", "correct_option",
)  # fmt: skip
"""Usual names of label columns, the most likely first."""
_LABEL_WORDS = {"label", "labels", "class", "category", "target", "intent"}
"""Words in names such as entailment_label."""
_PAIR_NAMES = (
    ("premise", "hypothesis"), ("first", "second"), ("question", "sentence"),
    ("question", "passage"), ("query", "passage"), ("query", "document"), ("question", "answer"),
    ("question", "context"), ("query", "title"), ("query", "product_title"), ("claim", "evidence"),
    ("context", "response"), ("context", "hypothesis"),
)  # fmt: skip
"""Usual names of two texts that belong together."""
_FIELDS = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("first", "second"),
}
_NO_NAME = re.compile(r"column_\d+$")
"""The name of a column in a file without a header."""
_EMBEDDED = re.compile(r"(^|\s)\(?[Aa1][.):].*\s\(?[Bb2][.):]", re.DOTALL)
"""Choices inside a text: (A) ... (B) ..."""
_LISTED = 20
"""Columns that are listed."""
_MIN_FLAGS = 3
"""Columns of zeros and ones from which they are taken for labels."""
_SYMMETRIC = re.compile(r"dupl|para|simil|equiv|same|match", re.IGNORECASE)


class LabelNotFoundError(UsageError):
    """No column is taken for the label, and none is given."""


class TaskGuess(NamedTuple):
    """The task section of a recipe."""

    format: str
    columns: dict[str, str | Sequence[str]]
    unused: list[str]
    """Columns that are not read."""
    labels: Mapping[str, int] = {}
    """Label to its number of rows; empty for scores."""
    range: tuple[int, int] | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    separator: str | None = None
    """Text between several labels of a row; empty for lists of them or a column for each, and None
    if a row has one label."""
    unlabelled: tuple[str, ...] = ()
    """Labels that mean "no label"."""
    typing_errors: Mapping[str, str] = {}
    """Label of one row to the frequent label that it resembles; these are unlabelled."""
    class_names: Mapping[str, str] = {}
    """Label to its name, where the file has names for numbers (ClassLabel)."""
    embedded_choices: str = ""
    """The column of texts that seem to hold their choices."""
    unread_choices: Sequence[str] = ()
    """Columns that look like choices, of which the label names none."""


def guess_task(
    columns: Mapping[str, Column],
    *,
    format: str | None = None,
    label: str | None = None,
    texts: Sequence[str] = (),
    choices: Sequence[str] = (),
    scores: bool = False,
    class_names: Mapping[str, Sequence[str]] = {},
) -> TaskGuess:
    """Guesses what is not given: a format, and the columns of the label, texts and choices.

    With `scores`, whole numbers are scores too. `class_names` are the names of classes 0, 1, ... of
    some columns.

    Raises:
        UsageError: There is no such column, no label or no text is found, or the columns do not
            make a task.
    """
    given = [*texts, *choices, *([label] if label else [])]
    _check_names(columns, given)
    flags = [] if label else _find_flags(columns)
    target = columns[label] if label else _join_flags(flags) or _find_label(columns)
    others = [c for c in columns.values() if c not in (target, *flags) and c.name not in given]
    if not choices and format in (None, "multiple_choice") and not target.items:
        choices = _find_choices(others, target)
    unread_choices = [] if choices or format else _find_choices(others, None)
    if not texts:
        candidates = [c for c in others if c.name not in choices and c.is_text]
        contexts = [c.name for c in candidates if not c.is_part]
        texts = contexts if choices else _find_texts(candidates, format)
    if not texts:
        raise UsageError("found no text column", cure="Name it with --text.")
    if scores and not target.numbers:
        what = f"column {target.name!r} does not hold numbers"
        raise UsageError(what, cure="Name the column of the scores with --label.")
    scores = (scores or target.is_score) and not choices
    chosen = format or _choose_format(texts, choices, target, scores)
    fields = _assign_fields(chosen, texts, choices, columns)
    fields["label"] = [column.name for column in flags] or target.name
    read = {*texts, *choices, target.name, *(column.name for column in flags)}
    guess = TaskGuess(chosen, fields, [name for name in columns if name not in read])
    if choices:
        return _add_answers(guess, target, choices, columns[choices[0]].longest_list)
    names = {str(k): name for k, name in enumerate(class_names.get(target.name, ()))}
    if target.items:
        return _add_several_labels(guess, target, names)
    if scores:
        bounds = math.floor(min(target.numbers)), math.ceil(max(target.numbers))
        metrics = ("pearson", "spearman")
        return guess._replace(range=bounds, metrics=metrics, unlabelled=target.missing)
    guess = _add_classes(guess, target, names)
    embedded = _find_embedded_choices(texts, columns, guess.labels)
    return guess._replace(embedded_choices=embedded, unread_choices=unread_choices)


def _check_names(columns: Mapping[str, Column], given: Sequence[str]) -> None:
    """Raises UsageError if a given column is missing, or names of columns look like data."""
    for name in columns if not given else ():
        if len(name.split()) > 6 or name.strip().replace(".", "").isdigit():
            what = f"the first line looks like data, not like column names: {name.strip()[:60]!r}"
            cure = "If it is data, add --no-header; else name the columns with --text and --label."
            raise UsageError(what, cure=cure)
    for name in given:
        if name not in columns:
            raise UsageError(f"no column {name!r}", cure=suggest(name, columns))


def _assign_fields(
    format: str, texts: Sequence[str], choices: Sequence[str], columns: Mapping[str, Column]
) -> dict[str, str | Sequence[str]]:
    """The fields of the format and their columns, without the label."""
    names = _FIELDS.get(format, ("context", "choices"))
    values: list[str | Sequence[str]] = [*texts]
    if choices:
        context = texts[0] if len(texts) == 1 else " ".join(f"{{{name}}}" for name in texts)
        values = [context, choices[0] if columns[choices[0]].longest_list else choices]
    if len(names) != len(values) or bool(choices) != (format == "multiple_choice"):
        what = f"the columns do not fit the format {format}"
        cure = "It reads one text (classification), two texts, or a context and choices."
        raise UsageError(what, cure=cure)
    return dict(zip(names, values, strict=True))


def _add_answers(
    guess: TaskGuess, label: Column, choices: Sequence[str], longest_list: int
) -> TaskGuess:
    """The labels of a multiple-choice task."""
    count = longest_list or len(choices)
    labels = _count_answers(label, choices, count)
    names = {}
    if {"A", "1"} <= labels.keys():
        names = {str(k): chr(ord("@") + k) for k in range(1, count + 1)}
    return guess._replace(labels=labels, unlabelled=label.missing, class_names=names)


def _add_several_labels(guess: TaskGuess, label: Column, names: Mapping[str, str]) -> TaskGuess:
    """The labels of which a row can have several."""
    return guess._replace(
        labels=_complete(_sort_labels(label.name, label.items), names),
        metrics=("micro_f1", "macro_f1"),
        separator=label.separator,
        class_names=names,
    )


def _add_classes(guess: TaskGuess, label: Column, names: Mapping[str, str]) -> TaskGuess:
    """The classes, and the values that are taken for typing errors."""
    labels = _complete(_count_classes(label), names)
    errors = {} if label.numbers else find_typing_errors(labels)
    return guess._replace(
        labels={text: rows for text, rows in labels.items() if text not in errors},
        unlabelled=(*label.missing, *errors),
        typing_errors=errors,
        class_names=names,
    )


def _complete(labels: dict[str, int], names: Mapping[str, str]) -> dict[str, int]:
    """Rows of each label, also of those with a name that no row has; -1 is no label there."""
    if not names or not labels.keys() <= {*names, "-1"}:
        return labels
    return {text: labels.get(text, 0) for text in names}


def _find_named_label(columns: Mapping[str, Column]) -> Column | None:
    """The column with a usual name."""
    by_name = {name.lower().replace(" ", "_"): column for name, column in columns.items()}
    for name in _LABEL_NAMES:
        column = by_name.get(name)
        if column and (
            len(column.numbers) > 1
            or column.items
            or column.answers
            or (len(column.counts) > 1 and column.repeats)
        ):
            return column
    return None


def _find_flags(columns: Mapping[str, Column]) -> list[Column]:
    """Columns of zeros and ones, one for each of several labels; empty if there is one label."""
    flags = [column for column in columns.values() if column.is_flag]
    named = _find_named_label(columns)
    is_other = named is not None and named not in flags
    if is_other or len(flags) < _MIN_FLAGS:
        return []
    # Between them may be labels that no row has.
    between = list(columns.values())
    between = between[between.index(flags[0]) : between.index(flags[-1]) + 1]
    return [column for column in between if column in flags or column.counts.keys() == {"0"}]


def _join_flags(flags: Sequence[Column]) -> Column | None:
    """The columns of several labels as one column; None if there are none."""
    if not flags:
        return None
    items: Counter[str] = Counter()
    for column in flags:
        values = column.counts.items()
        items[column.name] = sum(n for text, n in values if text.lower() in ("1", "true"))
    return Column(flags[0].name, Counter(), [], 0.0, 0, items, "")


def _find_label(columns: Mapping[str, Column]) -> Column:
    """The column with a usual name, or with the fewest distinct short values."""
    if named := _find_named_label(columns):
        return named
    candidates = [
        column
        for column in columns.values()
        if column.repeats
        and 2 <= len(column.counts) <= _MAX_CLASSES
        and column.mean_words <= 3
        and (_has_label_word(column.name) or not column.is_metadata)
    ]
    if not candidates:
        names = ", ".join(list(columns)[:_LISTED]) + (", ..." if len(columns) > _LISTED else "")
        cure = f"Name it with --label. Columns: {names}."
        for name, column in columns.items():
            if name.lower() in _LABEL_NAMES and column.counts:
                if _find_choices(list(columns.values()), column):
                    return column  # All answers are the same choice.
                count = len(column.counts)
                values = "one value" if count == 1 else f"{count:,} different values"
                cure = f"{name} has {values} in {column.counts.total():,} rows. {cure}"
                break
        raise LabelNotFoundError("found no label column", cure=cure)
    likely = [column for column in candidates if _has_label_word(column.name)]
    return min(reversed(likely or candidates), key=lambda column: len(column.counts))


def _has_label_word(name: str) -> bool:
    return not _LABEL_WORDS.isdisjoint(re.split(r"[\W_]+", name.lower()))


def _find_choices(columns: Sequence[Column], label: Column | None) -> list[str]:
    """A column of lists, or columns that differ in a number or letter; empty if there are none.

    They must fit the label, if there is one.
    """

    def fits(choices: Sequence[str], count: int) -> bool:
        if label is None:
            return True
        has_texts = label.answers is not None and label.answers[0] == tuple(choices)
        return has_texts or bool(_name_choices(label, choices, count))

    for column in columns:
        name, count = column.name, column.longest_list
        is_text = CHOICE_WORDS.search(name) and not name.endswith((".label", ".labels"))
        if is_text and count > 1 and fits([name], count):
            return [name]
    names = [column.name for column in columns]
    choices = max(group_choices(names), key=len, default=[])
    if label and _NO_NAME.match(label.name) and LETTERS.fullmatch("".join(sorted(label.counts))):
        # Without a header: the columns before the letter of the answer.
        before = names[: sum(int(name[7:]) < int(label.name[7:]) for name in names)]
        choices = before[-len(label.counts) :]
    return choices if len(choices) > 1 and fits(choices, len(choices)) else []


def _find_embedded_choices(
    texts: Sequence[str], columns: Mapping[str, Column], labels: Mapping[str, int]
) -> str:
    """The first column whose texts hold "(A) ... (B) ...", if the labels are letters or numbers."""
    if not all(len(text) == 1 for text in labels):
        return ""
    for name in texts:
        counts = columns[name].counts
        if 2 * sum(n for text, n in counts.items() if _EMBEDDED.search(text)) > counts.total():
            return name
    return ""


def _name_choices(label: Column, choices: Sequence[str], count: int) -> list[str]:
    """0..K-1, 1..K, A, B, ... or the K columns, as the labels are written; empty if otherwise."""
    if len(choices) == count and label.counts.keys() <= set(choices):
        return list(choices)
    numbers = ([str(k + first) for k in range(count)] for first in (0, 1))
    upper, lower = list(string.ascii_uppercase[:count]), list(string.ascii_lowercase[:count])
    for names in (*numbers, upper, lower):
        if label.counts.keys() <= set(names):
            return names
    found = {clean_answer(text).upper() for text in label.counts}
    # ARC has letters in some rows and numbers from 1 in others.
    numbers_too = {str(k + 1) for k in range(count)}
    return upper if found <= {*upper, *numbers_too} else []


def _find_texts(columns: Sequence[Column], format: str | None) -> list[str]:
    """A pair of texts, or the longest text."""
    names = [column.name for column in columns]
    by_name = {name.lower().replace(" ", "_"): name for name in names}
    stems: dict[str, list[str]] = {}
    for name in names:
        if not _NO_NAME.match(name):
            stems.setdefault(NUMBER_IN_NAME.sub("#", name), []).append(name)
    pairs = [[by_name[n] for n in pair] for pair in _PAIR_NAMES if set(pair) <= by_name.keys()]
    pairs += [group for group in stems.values() if len(group) == 2]
    if format != "classification" and pairs:
        return pairs[0]
    count = 2 if format in ("entailment", "similarity") else 1
    longest = sorted(columns, key=lambda column: -column.mean_words)[:count]
    return [column.name for column in columns if column in longest]


def _choose_format(
    texts: Sequence[str], choices: Sequence[str], label: Column, scores: bool
) -> str:
    if choices:
        return "multiple_choice"
    if len(texts) == 1:
        return "classification"
    symmetric = scores or any(map(_SYMMETRIC.search, (label.name, *label.counts)))
    return "similarity" if symmetric else "entailment"


def _count_classes(label: Column) -> dict[str, int]:
    """Rows of each class, in the order of numbers or names."""
    labels = sorted(label.counts, key=float if label.numbers else str)
    return _sort_labels(label.name, label.counts, labels)


def _count_answers(label: Column, choices: Sequence[str], count: int) -> dict[str, int]:
    """Rows of each answer, in the order of the choices if the answers name them."""
    labels = _name_choices(label, choices, count)
    if labels and (numbers := _mixed_numbers(label, labels)):
        return {**{name: label.counts[name] for name in labels}, **numbers}
    counts = Counter(dict.fromkeys(labels, 0))
    for text, rows in label.counts.items() if labels else ():
        counts[text if text in labels else clean_answer(text).upper()] += rows
    if not labels and label.answers:
        labels = list(string.ascii_uppercase[:count])
        counts = Counter({name: label.answers[1][k] for k, name in enumerate(labels)})
    return _sort_labels(label.name, counts, labels) if labels else _count_classes(label)


def _mixed_numbers(label: Column, letters: Sequence[str]) -> dict[str, int]:
    """Rows of each number from 1, if labels are letters in some rows and numbers in others."""
    if letters[0] != "A" or not any(text.isdecimal() for text in label.counts):
        return {}
    return {str(k): label.counts[str(k)] for k in range(1, len(letters) + 1)}


def _sort_labels(
    column: str, counts: Counter[str], labels: Sequence[str] | None = None
) -> dict[str, int]:
    """Rows of each label in the order of `labels`, or of their numbers or names."""
    if labels is None:
        labels = sorted(counts, key=int if all(map(str.isdecimal, counts)) else str)
    if len(labels) < 2 or len(labels) > max(_MAX_CLASSES, counts.total() // 2):
        what = f"column {column!r} has {len(labels)} different values in {counts.total():,} rows"
        cure = "Name a column of 2 or more labels that repeat with --label, or use --scores."
        raise UsageError(what, cure=cure)
    return {name: counts[name] for name in labels}
