"""The samples X of an estimator: texts, pairs of texts, or rows of a task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune.data.examples import build_examples
from finetune.data.rows import locate_rows
from finetune.recipe.schema import TaskConfig
from task_formats import Example, Task, UsageError, named_format


def parse_samples(X: Any) -> tuple[str, list[Any]]:
    """The kind (`text`, `pair` or `row`) and the samples of a list, array, Series or DataFrame."""
    if isinstance(X, str | Mapping):
        raise UsageError(f"X is {X!r}, not a list of samples", cure="For one sample write [X].")
    samples = list(X.to_dict("records") if hasattr(X, "columns") else X)
    if not samples:
        raise UsageError("X has no samples")
    kinds = [_kind_of(sample, n) for n, sample in enumerate(samples)]
    for n, kind in enumerate(kinds):
        if kind != kinds[0]:
            cure = "Give samples of one kind: texts, pairs of texts, or mappings."
            raise UsageError(f"X[{n}] is a {kind}, but X[0] is a {kinds[0]}", cure=cure)
    return kinds[0], samples


def _kind_of(sample: Any, n: int) -> str:
    if isinstance(sample, str):
        return "text"
    if isinstance(sample, Mapping):
        return "row"
    is_sequence = isinstance(sample, list | tuple | np.ndarray)
    if is_sequence and len(sample) == 2 and all(isinstance(text, str) for text in sample):
        return "pair"
    cure = "A sample is a text, a pair of texts, or a mapping."
    raise UsageError(f"X[{n}] is {sample!r}", cure=cure)


def make_task_config(name: str | None, kind: str, **labels: Any) -> TaskConfig:
    """The task of a format whose columns are called like its fields.

    `labels` are the fields of `TaskConfig` that describe y.
    """
    if name is None and kind == "row":
        what = "X[0] is a mapping, but there is no task to read it"
        raise UsageError(what, cure="Give task: a recipe's name or file, a Recipe or a Task.")
    name = name or {"text": "classification", "pair": "entailment"}[kind]
    fields, chooses = named_format(name).fields, named_format(name).is_multiple_choice
    if chooses or len(fields) != {"text": 1, "pair": 2}.get(kind, len(fields)):
        cure = "Texts are for classification, pairs for entailment or similarity; else give task."
        raise UsageError(f"{name} does not read a {kind}", cure=cure)
    columns = {field: field for field in fields}
    return TaskConfig(format=name, columns=columns, **labels)


def make_examples(reader: Task, kind: str, samples: Sequence[Any]) -> list[Example]:
    """Unlabelled examples; a RowError names the sample that cannot be used."""
    if kind != "row":
        pairs = [[sample] if kind == "text" else sample for sample in samples]
        fields = reader.format.fields
        samples = [dict(zip(fields, map(str, pair), strict=True)) for pair in pairs]
    located = locate_rows(samples, "X")
    built = build_examples(reader.without_labels(), located, "X", labelled=False)
    return [item.example for item in built]
