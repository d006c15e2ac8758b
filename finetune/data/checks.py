"""Checks of the rows of a task: labels, duplicates, overlap of splits, leaks of labels."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from finetune.data.draws import is_sorted
from finetune.data.examples import LocatedExample
from finetune.data.rows import RowLocation
from task_formats import Classes, Example, MultiLabel, Range, Row, Task
from task_formats.labels import as_text, find_typing_errors
from task_formats.templates import look_up

_MIN_ROWS = 20
"""Rows below which a column or an order that fits the labels may be chance."""
_RARE = 5
"""Fewer training examples of a class than this are reported."""
_MANY_DUPLICATES = 0.1
"""Share of repeated rows from which they are a problem."""

Texts = tuple[tuple[str, str], ...]
"""The fields and choices of an example, by name, without their case and spacing."""


class Finding(NamedTuple):
    """What a check found out."""

    subject: str
    """A split, or the check."""
    text: str
    is_problem: bool = False


def check_splits(task: Task, splits: Mapping[str, Sequence[LocatedExample]]) -> Iterator[Finding]:
    """Yields what is notable about the examples of a task.

    Args:
        task: The task.
        splits: The examples of each split by name; the one called `train` is compared with the
            others.
    """
    for name, items in splits.items():
        examples = [item.example for item in items]
        yield from check_labels(task, name, examples)
        yield from check_duplicates(name, examples)
        yield from check_order(name, examples)
        yield from check_columns(task, name, items)
    column = task.columns.get("label")
    if isinstance(column, str):
        rows = [(item.location, item.row) for items in splits.values() for item in items]
        for label, location in find_unicode_forms(column, rows).items():
            text = f"{label!r} occurs in two Unicode forms, which are equal: {location}"
            yield Finding("labels", text)
    train = [item.example for item in splits.get("train", ())]
    for name, items in splits.items():
        if name != "train" and train:
            examples = [item.example for item in items]
            yield from check_overlap(task, name, examples, train)


def find_unicode_forms(
    column: str, rows: Iterable[tuple[RowLocation, Row]]
) -> dict[str, RowLocation]:
    """Returns labels that occur in several Unicode forms, with the place of the second form."""
    first: dict[str, str] = {}
    found: dict[str, RowLocation] = {}
    for location, row in rows:
        try:
            text = as_text(look_up(row, column))
        except KeyError:
            continue
        if not text.isascii():
            form = unicodedata.normalize("NFC", text)
            if first.setdefault(form, text) != text:
                found.setdefault(form, location)
    return found


def check_labels(task: Task, split: str, examples: Sequence[Example]) -> Iterator[Finding]:
    """Counts of every class, or the distribution of scores."""
    labels = [example.label for example in examples if example.label is not None]
    if not labels:
        yield Finding(split, "no row has a label, so it cannot be scored", split != "predict")
        return
    if isinstance(task.labels, Range):
        scores = list(map(task.labels.name, labels))
        text = f"scores from {min(scores):g} to {max(scores):g}, mean {mean(scores):.3g}"
        yield Finding(split, text)
        if min(scores) == max(scores):
            yield Finding(split, "all scores are equal", True)
        return
    if isinstance(task.labels, MultiLabel):
        counts = Counter(name for label in labels for name in task.labels.name(label))
    else:
        counts = Counter(map(task.labels.name, labels))
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(10))
    yield Finding(split, f"labels: {shown}{', ...' if len(counts) > 10 else ''}")
    absent = [name for name in task.labels.names if not counts[name]]
    if len(set(labels)) == 1:
        yield Finding(split, "all rows have one label", True)
    elif absent and not task.format.is_multiple_choice:
        yield Finding(split, f"no row has the label {_list(absent)}", True)
    if not isinstance(task.labels, MultiLabel) and not task.format.is_multiple_choice:
        for name, other in find_typing_errors(counts).items():
            where = next(e.id for e in examples if e.label == task.labels.parse(name))
            yield Finding(split, f"{name!r} in {where} may be a typing error of {other!r}", True)
    rare = [name for name, count in counts.items() if count < _RARE]
    if split == "train" and rare and not task.format.is_multiple_choice:
        yield Finding(split, f"fewer than {_RARE} rows with the label {_list(rare)}", True)


def check_duplicates(split: str, examples: Sequence[Example]) -> Iterator[Finding]:
    """Rows with equal texts, and those among them whose labels differ."""
    groups: defaultdict[Texts, list[Example]] = defaultdict(list)
    for example in examples:
        groups[normalize(example)].append(example)
    repeated = [group for group in groups.values() if len(group) > 1]
    if repeated:
        count = sum(len(group) - 1 for group in repeated)
        share = count / len(examples)
        text = f"{count:,} rows ({share:.1%}) repeat the texts of another"
        yield Finding(split, text, share > _MANY_DUPLICATES)
    differing = [group for group in repeated if len({example.label for example in group}) > 1]
    if differing:
        one = differing[0]
        text = f"{len(differing):,} texts occur with different labels, such as {one[0].id}"
        other = next(example for example in one if example.label != one[0].label)
        yield Finding(split, f"{text} and {other.id}", True)


def check_overlap(
    task: Task, split: str, examples: Sequence[Example], train: Sequence[Example]
) -> Iterator[Finding]:
    """Rows of a split whose texts are in the training split, and labels that are not."""
    known = {normalize(example) for example in train}
    found = [example for example in examples if normalize(example) in known]
    if found:
        share = len(found) / len(examples)
        text = f"{len(found):,} rows ({share:.1%}) are also in train, such as {found[0].id}"
        yield Finding(split, text, True)
    if isinstance(task.labels, Classes) and not task.format.is_multiple_choice:
        learned = {task.labels.name(e.label) for e in train if e.label is not None}
        labels = {task.labels.name(e.label) for e in examples if e.label is not None}
        if names := sorted(labels - learned, key=task.labels.names.index):
            yield Finding(split, f"train has no row with the label {_list(names)}", True)


def check_order(split: str, examples: Sequence[Example]) -> Iterator[Finding]:
    """Whether the rows are sorted by label: a first part of them is then of one label."""
    labels = [example.label for example in examples]
    if len(labels) >= _MIN_ROWS and is_sorted(labels):
        yield Finding(
            split, "the rows are sorted by label: --limit takes a stratified part of them"
        )


def check_columns(task: Task, split: str, items: Sequence[LocatedExample]) -> Iterator[Finding]:
    """Columns besides the label whose values tell the label, such as ids `pos-17` and `neg-3`.

    Numbers in a value do not count. A column that the model reads is a problem; another one is only
    reported.
    """
    labelled = [item for item in items if item.example.label is not None]
    if len(labelled) < _MIN_ROWS or len({item.example.label for item in labelled}) < 2:
        return
    column = task.columns.get("label", ())
    label_columns = {
        name.split(".")[0] for name in ([column] if isinstance(column, str) else column)
    }
    names = dict.fromkeys(name for item in labelled[:100] for name in item.row)
    for name in names:
        if name in label_columns:
            continue
        labels_of: defaultdict[str, set[object]] = defaultdict(set)
        for item in labelled:
            value = item.row.get(name)
            labels_of[re.sub(r"\d+", "#", str(value))].add(item.example.label)
        few = 2 <= len(labels_of) <= len(labelled) / 4
        if few and all(len(found) == 1 for found in labels_of.values()):
            is_read = name in task.text_columns
            what = "the model reads it" if is_read else "the model does not read it"
            example = next(iter(labels_of))
            text = f"the column {name!r} tells the label ({example!r}, ...); {what}"
            yield Finding(split, text, is_read)


def normalize(example: Example) -> Texts:
    """The texts of an example without their case and spacing."""
    texts = [*example.fields.items(), *(("choice", choice) for choice in example.choices)]
    return tuple((name, " ".join(text.casefold().split())) for name, text in texts)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} others" if len(names) > 5 else shown
