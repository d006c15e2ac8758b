"""Rows in, the same rows with a label and probabilities out, one window after the other."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from finetune.cli.console import console
from finetune.cli.output_columns import find_columns
from finetune.data import PredictionColumns, RowLocation, Rows, name_columns, write_rows
from finetune.evaluation.predictor import Predictor
from task_formats import Classes, Prediction, Row, RowError, Task, UsageError


@dataclass
class Count:
    """What became of the rows."""

    labelled: int = 0
    skipped: list[tuple[RowLocation, str]] = field(default_factory=list)


def label_rows(predictor: Predictor, rows: Rows, output: str, kind: str, *, skip: bool) -> Count:
    """Writes every row with its prediction; rows are held a window at a time.

    Raises UsageError where there are no rows, RowError at an unusable row unless it is skipped,
    and where a row has a column that none of the first ones has.
    """
    count = Count()
    columns, known = find_columns(_usable(predictor.task, rows, count, skip=skip))
    if not columns:
        raise UsageError("no rows to label", where=rows.origin, cure="The file needs rows.")
    classes = predictor.task.labels.names if isinstance(predictor.task.labels, Classes) else ()
    added = name_columns(columns, classes)
    everything = [*columns, added.label, *added.scores]
    with write_rows(output, everything, format=kind) as sink, _counter() as counter:
        task = counter.add_task("labelling", total=None) if counter else None
        for row, prediction in predictor.stream(row for _, row in known):
            sink.write({**row, **_answer(prediction, added)})
            count.labelled += 1
            if counter and task is not None:
                counter.advance(task)
    return count


def _answer(prediction: Prediction, added: PredictionColumns) -> dict[str, Any]:
    """The added values; a choice that a row does not have gets none."""
    scores = itertools.zip_longest(added.scores, prediction.scores[: len(added.scores)])
    return {added.label: prediction.label, **dict(scores)}


def _usable(
    task: Task, rows: Rows, count: Count, *, skip: bool
) -> Iterator[tuple[RowLocation, Row]]:
    """Rows that can be labelled; the others raise, with their place, or are counted."""
    unlabelled_task = task.without_labels()
    for place, row in rows.read():
        try:
            if isinstance(row, RowError):
                raise row
            _check(unlabelled_task, row, place)
        except RowError as error:
            if not skip:
                raise
            count.skipped.append((place, error.what))
        else:
            yield place, row


def _check(reader: Task, row: Row, place: RowLocation) -> None:
    try:
        reader.example(row, "", labelled=False)
    except RowError as error:
        raise error.located(str(place)) from None


def _counter() -> Any:
    """Rows so far, on a terminal's standard error."""
    out = console(stderr=True)
    if not out.is_terminal:
        return nullcontext()
    rows = TextColumn("{task.completed:,.0f} rows")
    return Progress(SpinnerColumn(), rows, TimeElapsedColumn(), console=out, transient=True)
