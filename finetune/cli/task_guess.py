"""Guesses the task of a file from the names and types of its columns, for `gptft new`."""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

from task_formats import Row, UsageError, suggest
from task_formats.labels import (
    as_text,
    clean_answer,
    decimal_point,
    find_typing_errors,
    normalize_label,
    parse_list,
    split_labels,
)

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
_NOT_TEXT = re.compile(
    r"(^|[_ .])((ids?|idx|index|guid|uid|key|no|row)$|(date|time|url|author|source|split)([_ .]|$))"
    r"|^unnamed",
    re.IGNORECASE,
)
_LETTERS = re.compile("ABCD?E?")
_NO_NAME = re.compile(r"column_\d+$")
"""The name of a column in a file without a header."""
_CHOICES = re.compile(r"choice|option|ending|candidate|answer|quiz|sol", re.IGNORECASE)
_LETTER = re.compile(r"(op)?[A-E]", re.IGNORECASE)
_EMBEDDED = re.compile(r"(^|\s)\(?[Aa1][.):].*\s\(?[Bb2][.):]", re.DOTALL)
"""Choices inside a text: (A) ... (B) ..."""
_NUMBER_IN_NAME = re.compile(r"\d+|(?<=[_ .-])[A-Ea-e]$|(?<=[a-z])[A-E]$")
_SEPARATORS = (",", ";", "|")
_MAX_LABEL_WORDS = 4
"""Words of one of several labels in a text, on average; longer ones are text with commas."""
_MAX_WORDS = 8
"""Words of a row with several labels, on average; more are a text."""
_LISTED = 20
"""Columns that are listed."""
_MIN_FLAGS = 3
"""Columns of zeros and ones from which they are taken for labels."""
_SYMMETRIC = re.compile(r"dupl|para|simil|equiv|same|match", re.IGNORECASE)


class LabelNotFoundError(UsageError):
    """No column is taken for the label, and none is given."""


class Column(NamedTuple):
    """A column over all rows; a nested one has a dotted name (`question.stem`)."""

    name: str
    counts: Counter[str]
    """Number of rows of each value; without empty values and lists."""
    numbers: list[float]
    """The distinct values, if all are numbers."""
    mean_words: float
    longest_list: int
    """0 if the values are not lists, nor texts of lists."""
    items: Counter[str]
    """Number of rows of each item, if the values are lists or texts with several labels."""
    separator: str
    """Text between two labels; empty if the values are lists."""
    missing: tuple[str, ...] = ()
    """Values that mean "no label", if this is the label: SNLI's "-", nan among numbers, and ""."""
    answers: tuple[tuple[str, ...], Counter[int]] | None = None
    """The columns of choices that hold this column's values, and how often each position does."""
    is_part: bool = False
    """Whether every value is contained in that of another column in the same row."""

    @property
    def is_score(self) -> bool:
        """True for numbers with fractions; whole numbers are classes."""
        return not all(map(float.is_integer, self.numbers))

    @property
    def repeats(self) -> bool:
        """True if there are few distinct values, as in a column of classes."""
        return len(self.counts) <= 3 or 2 * len(self.counts) <= self.counts.total()

    @property
    def is_flag(self) -> bool:
        """True for zeros and ones, as in the column of one of several labels."""
        values = {text.lower() for text in self.counts}
        return values in ({"0", "1"}, {"false", "true"}) and not _NOT_TEXT.search(self.name)

    @property
    def is_text(self) -> bool:
        """True if the column can be read as a text."""
        if self.numbers or not self.counts or _NOT_TEXT.search(self.name):
            return False
        return self.mean_words >= 1.5 or self.name.lower() in ("text", "sentence", "word")


def summarize_columns(rows: Iterable[Row]) -> dict[str, Column]:
    """The columns of a file by name."""
    flat = [dict(_flatten(row)) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = {name: _summarize(name, [row.get(name) for row in flat]) for name in names}
    groups: list[tuple[str, ...]] = [(c.name,) for c in columns.values() if c.longest_list]
    groups += [tuple(group) for group in _group_choices(columns) if len(group) > 1]
    texts = [column.name for column in columns.values() if column.is_text]
    for name, column in columns.items():
        for choices in groups if column.counts else ():
            if name not in choices and (positions := _find_positions(flat, name, choices)):
                columns[name] = columns[name]._replace(answers=(choices, positions))
        others = [other for other in texts if other != name] if name in texts else []
        if any(_is_part(flat, name, other) for other in others):
            columns[name] = columns[name]._replace(is_part=True)
    return columns


def _is_part(rows: Sequence[Mapping[str, Any]], name: str, other: str) -> bool:
    """Whether every value of a column is contained in that of another one, and one is shorter."""
    differs = False
    for row in rows:
        part, whole = as_text(row.get(name)), as_text(row.get(other))
        if part not in whole:
            return False
        differs = differs or part != whole
    return differs


def _find_positions(
    rows: Sequence[Mapping[str, Any]], name: str, choices: Sequence[str]
) -> Counter[int]:
    """How often a value is each of its row's choices; empty if one of the values is none."""
    positions: Counter[int] = Counter()
    for row in rows:
        if answer := as_text(row.get(name)):
            items = [row.get(column) for column in choices]
            items = parse_list(items[0]) if len(items) == 1 else items
            texts = [as_text(item) for item in items] if isinstance(items, list) else []
            if texts.count(answer) != 1:
                return Counter()
            positions[texts.index(answer)] += 1
    return positions


def _flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        is_list = isinstance(value, list) and value
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif is_list and all(isinstance(item, Mapping) for item in value):
            # A list of choices, each with a text and a label.
            for name in value[0]:
                if all(name in item for item in value):
                    yield f"{prefix}{key}.{name}", [item[name] for item in value]
        else:
            yield f"{prefix}{key}", value


def _summarize(name: str, values: Sequence[Any]) -> Column:
    if lists := [value for value in values if isinstance(value, list)]:
        items = Counter(item for value in lists for item in {*map(as_text, value)})
        return Column(name, Counter(), [], 0.0, max(map(len, lists)), items, "")
    has_gaps = "" in map(as_text, values)
    texts = [normalize("NFC", text) for text in map(as_text, values) if text]
    if texts and "," in texts[0]:
        points = list(map(decimal_point, texts))
        texts = texts if any("," in text for text in points) else points
    numbers = {text: _parse_number(text) for text in set(texts)}
    finite = [number for number in numbers.values() if number is not None and math.isfinite(number)]
    missing = tuple(sorted(text for text in numbers if text == "-"))
    if None not in numbers.values() and len(finite) > 1:
        missing = tuple(sorted(text for text in numbers if not math.isfinite(float(text))))
    if len(numbers) - len(missing) < 2:
        missing = ()
    texts = [text for text in texts if text not in missing]
    are_numbers = bool(finite) and len(finite) + len(missing) == len(numbers)
    if are_numbers and all(map(float.is_integer, finite)):
        texts = [str(int(float(text))) for text in texts]
    mean_words = sum(len(text.split()) for text in texts) / max(len(texts), 1)
    counts = Counter(texts)
    separator, items = _find_separator(counts if mean_words <= _MAX_WORDS else Counter())
    finite = sorted(set(finite)) if are_numbers else []
    lists = [parse_list(text) for text in counts] if counts and not finite else []
    longest = max(map(len, lists)) if all(isinstance(v, list) for v in lists) and lists else 0
    missing = ("", *missing) if has_gaps else missing
    return Column(name, counts, finite, mean_words, longest, items, separator, missing)


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _find_separator(counts: Counter[str]) -> tuple[str, Counter[str]]:
    """What separates several labels in texts, and the rows of each label; empty if nothing does.

    Some texts are one label, others several, and the labels are fewer than the distinct texts.
    """
    for separator in _SEPARATORS:
        items: Counter[str] = Counter()
        sizes = set()
        for text, rows in counts.items():
            labels = {*map(as_text, split_labels(text, separator))}
            sizes.add(len(labels))
            for label in labels:
                items[label] += rows
        words = sum(len(label.split()) for label in items) / max(len(items), 1)
        varies = min(sizes, default=0) <= 1 < max(sizes, default=0)
        if varies and 2 <= len(items) < len(counts) and words <= _MAX_LABEL_WORDS:
            return separator, items
    return "", Counter()


class TaskGuess(NamedTuple):
    """The task section of a recipe."""

    format: str
    columns: dict[str, str | Sequence[str]]
    unused: list[str]
    """Columns that are not read."""
    labels: dict[str, int]
    """Label to its number of rows; empty for scores."""
    range: tuple[int, int] | None
    metrics: tuple[str, ...]
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
    for name in columns if not given else ():
        if len(name.split()) > 6 or name.strip().replace(".", "").isdigit():
            what = f"the first line looks like data, not like column names: {name.strip()[:60]!r}"
            cure = "If it is data, add --no-header; else name the columns with --text and --label."
            raise UsageError(what, cure=cure)
    for name in given:
        if name not in columns:
            raise UsageError(f"no column {name!r}", cure=suggest(name, columns))
    flags = [] if label else _find_flags(columns)
    target = columns[label] if label else _join_flags(flags) or _find_label(columns)
    others = [c for c in columns.values() if c not in (target, *flags) and c.name not in given]
    if not choices and format in (None, "multiple_choice") and not target.items:
        choices = _find_choices(others, target)
    looks = [] if choices or format else _find_choices(others, None)
    candidates = [c for c in others if c.name not in choices and c.is_text]
    if not texts:
        contexts = [c.name for c in candidates if not c.is_part]
        texts = contexts if choices else _find_texts(candidates, format)
    if not texts:
        raise UsageError("found no text column", cure="Name it with --text.")
    if scores and not target.numbers:
        what = f"column {target.name!r} does not hold numbers"
        raise UsageError(what, cure="Name the column of the scores with --label.")
    scores = (scores or target.is_score) and not choices
    chosen = format or _choose_format(texts, choices, target, scores)
    names = _FIELDS.get(chosen, ("context", "choices"))
    values: list[str | Sequence[str]] = [*texts, *choices]
    if choices:
        context = texts[0] if len(texts) == 1 else " ".join(f"{{{name}}}" for name in texts)
        values = [context, choices[0] if columns[choices[0]].longest_list else choices]
    if len(names) != len(values) or bool(choices) != (chosen == "multiple_choice"):
        what = f"the columns do not fit the format {chosen}"
        cure = "It reads one text (classification), two texts, or a context and choices."
        raise UsageError(what, cure=cure)
    label_column = [column.name for column in flags] or target.name
    fields = {**dict(zip(names, values, strict=True)), "label": label_column}
    read = {*texts, *choices, target.name, *(column.name for column in flags)}
    unused = [name for name in columns if name not in read]
    known = () if choices else class_names.get(target.name, ())
    class_labels = {str(k): name for k, name in enumerate(known)}
    if target.items and not choices:
        labels = _complete(_sort_labels(target.name, target.items), class_labels)
        metrics = ("micro_f1", "macro_f1")
        return TaskGuess(
            chosen,
            fields,
            unused,
            labels,
            None,
            metrics,
            target.separator,
            class_names=class_labels,
        )
    missing = target.missing
    if scores:
        bounds = math.floor(min(target.numbers)), math.ceil(max(target.numbers))
        metrics = ("pearson", "spearman")
        return TaskGuess(chosen, fields, unused, {}, bounds, metrics, unlabelled=missing)
    count = columns[choices[0]].longest_list or len(choices) if choices else 0
    labels = _count_labels(target, choices, count)
    if count and {"A", "1"} <= labels.keys():
        class_labels = {str(k): chr(ord("@") + k) for k in range(1, count + 1)}
    errors = {}
    if not choices:
        labels = _complete(labels, class_labels)
        errors = {} if target.numbers else find_typing_errors(labels)
        labels = {text: rows for text, rows in labels.items() if text not in errors}
    return TaskGuess(
        chosen,
        fields,
        unused,
        labels,
        None,
        ("accuracy",),
        unlabelled=(*missing, *errors),
        typing_errors=errors,
        embedded_choices="" if choices else _find_embedded_choices(texts, columns, labels),
        class_names=class_labels,
        unread_choices=[] if target.items else looks,
    )


def _complete(labels: dict[str, int], names: Mapping[str, str]) -> dict[str, int]:
    """Rows of each label, also of those with a name that no row has; -1 is no label there."""
    if not names or not labels.keys() <= {*names, "-1"}:
        return labels
    return {text: labels.get(text, 0) for text in names}


def lacks_header(columns: Mapping[str, Column]) -> bool:
    """Whether the names of some columns are values that repeat in them: the first row is data.

    If all are, the header is repeated, as in files that were joined.
    """
    repeated = [
        column.repeats and column.counts[normalize_label(name)] > 1
        for name, column in columns.items()
    ]
    return any(repeated) and not all(repeated)


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
        and (_has_label_word(column.name) or not _NOT_TEXT.search(column.name))
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
        is_text = _CHOICES.search(name) and not name.endswith((".label", ".labels"))
        if is_text and count > 1 and fits([name], count):
            return [name]
    names = [column.name for column in columns]
    choices = max(_group_choices(names), key=len, default=[])
    if label and _NO_NAME.match(label.name) and _LETTERS.fullmatch("".join(sorted(label.counts))):
        # Without a header: the columns before the letter of the answer.
        before = names[: sum(int(name[7:]) < int(label.name[7:]) for name in names)]
        choices = before[-len(label.counts) :]
    return choices if len(choices) > 1 and fits(choices, len(choices)) else []


def _group_choices(names: Iterable[str]) -> list[list[str]]:
    """Columns called A, B, ..., or like choices with numbers or letters at their ends."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, number = _NUMBER_IN_NAME.subn("", name)
        if _LETTER.fullmatch(name):
            groups.setdefault(name[:-1].lower(), []).append(name)
        elif number:
            groups.setdefault(stem, []).append(name)
    return [
        group
        for stem, group in groups.items()
        if _CHOICES.search(stem) or _LETTERS.fullmatch("".join(name[-1].upper() for name in group))
    ]


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
            stems.setdefault(_NUMBER_IN_NAME.sub("#", name), []).append(name)
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


def _count_labels(label: Column, choices: Sequence[str], count: int) -> dict[str, int]:
    """Rows of each label, in the order of the recipe; `count` is the number of choices, or 0."""
    labels = _name_choices(label, choices, count) if count else []
    counts = Counter(dict.fromkeys(labels, 0))
    if labels and (numbers := _mixed_numbers(label, labels)):
        return {**{name: label.counts[name] for name in labels}, **numbers}
    for text, rows in label.counts.items() if labels else ():
        counts[text if text in labels else clean_answer(text).upper()] += rows
    if not labels and label.answers and count:
        labels = list(string.ascii_uppercase[:count])
        counts = Counter({name: label.answers[1][k] for k, name in enumerate(labels)})
    if labels:
        return _sort_labels(label.name, counts, labels)
    labels = sorted(label.counts, key=float if label.numbers else str)
    return _sort_labels(label.name, label.counts, labels)


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
