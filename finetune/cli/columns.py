"""What the columns of a file hold, for `gptft new`."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

from task_formats import Row
from task_formats.labels import (
    as_text,
    decimal_point,
    normalize_label,
    parse_list,
    split_labels,
)

LETTERS = re.compile("ABCD?E?")
"""The letters of all choices, in order."""
CHOICE_WORDS = re.compile(r"choice|option|ending|candidate|answer|quiz|sol", re.IGNORECASE)
"""Words in the names of columns of choices."""
NUMBER_IN_NAME = re.compile(r"\d+|(?<=[_ .-])[A-Ea-e]$|(?<=[a-z])[A-E]$")
"""The number or letter in names such as text1, option_a and answerB."""
_LETTER = re.compile(r"(op)?[A-E]", re.IGNORECASE)
_METADATA = re.compile(
    r"(^|[_ .])((ids?|idx|index|guid|uid|key|no|row)$|(date|time|url|author|source|split)([_ .]|$))"
    r"|^unnamed",
    re.IGNORECASE,
)
_SEPARATORS = (",", ";", "|")
_MAX_LABEL_WORDS = 4
"""Words of one of several labels in a text, on average; longer ones are text with commas."""
_MAX_WORDS = 8
"""Words of a row with several labels, on average; more are a text."""


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
    def is_metadata(self) -> bool:
        """True for the name of something that is neither text nor label, such as id or date."""
        return _METADATA.search(self.name) is not None

    @property
    def is_flag(self) -> bool:
        """True for zeros and ones, as in the column of one of several labels."""
        values = {text.lower() for text in self.counts}
        return values in ({"0", "1"}, {"false", "true"}) and not self.is_metadata

    @property
    def is_text(self) -> bool:
        """True if the column can be read as a text."""
        if self.numbers or not self.counts or self.is_metadata:
            return False
        return self.mean_words >= 1.5 or self.name.lower() in ("text", "sentence", "word")


def summarize_columns(rows: Iterable[Row]) -> dict[str, Column]:
    """Returns the columns of a file by name."""
    flat = [dict(_flatten(row)) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    columns = {name: _summarize(name, [row.get(name) for row in flat]) for name in names}
    groups: list[tuple[str, ...]] = [(c.name,) for c in columns.values() if c.longest_list]
    groups += [tuple(group) for group in group_choices(columns) if len(group) > 1]
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
    missing = _find_missing(numbers)
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


def _find_missing(numbers: Mapping[str, float | None]) -> tuple[str, ...]:
    """Values that mean "no label": a dash, or nan and inf if all others are numbers."""
    finite = [number for number in numbers.values() if number is not None and math.isfinite(number)]
    missing = [text for text in numbers if text == "-"]
    if None not in numbers.values() and len(finite) > 1:
        missing = [text for text in numbers if not math.isfinite(float(text))]
    return tuple(sorted(missing)) if len(numbers) - len(missing) >= 2 else ()


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


def group_choices(names: Iterable[str]) -> list[list[str]]:
    """Groups columns called A, B, ..., or like choices with numbers or letters at their ends."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, number = NUMBER_IN_NAME.subn("", name)
        if _LETTER.fullmatch(name):
            groups.setdefault(name[:-1].lower(), []).append(name)
        elif number:
            groups.setdefault(stem, []).append(name)
    return [
        group
        for stem, group in groups.items()
        if CHOICE_WORDS.search(stem)
        or LETTERS.fullmatch("".join(name[-1].upper() for name in group))
    ]


def lacks_header(columns: Mapping[str, Column]) -> bool:
    """Whether the names of some columns are values that repeat in them: the first row is data.

    If all are, the header is repeated, as in files that were joined.
    """
    repeated = [
        column.repeats and column.counts[normalize_label(name)] > 1
        for name, column in columns.items()
    ]
    return any(repeated) and not all(repeated)
