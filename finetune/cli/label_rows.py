"""Adds predictions to the rows of a file, one window of rows after the other."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from finetune.cli.console import console
from finetune.cli.output_columns import find_columns
from finetune.data import ReadReport, Rows, name_columns, write_rows
from finetune.data.examples import LocatedExample, build_examples
from finetune.evaluation.predictor import Predictor
from task_formats import Classes, Prediction, Row, UsageError


def label_rows(
    predictor: Predictor,
    rows: Rows,
    output: str,
    format: str,
    *,
    on_bad_row: Literal["stop", "skip"] = "stop",
) -> ReadReport:
    """Writes every row with its prediction.

    Args:
        predictor: Makes the predictions.
        rows: The rows of a file.
        output: A path, or - for standard output.
        format: csv, tsv, jsonl, json or parquet.
        on_bad_row: Stop at a row that cannot be predicted, or leave it out.

    Returns:
        How many rows were written, and which were left out.

    Raises:
        UsageError: There are no rows.
        RowError: A row cannot be predicted, or has a column that none of the first ones has.
    """
    report = ReadReport()
    task = predictor.task.without_labels()
    items = build_examples(
        task, rows.read(), "row", labelled=False, on_bad_row=on_bad_row, report=report
    )
    columns, items = find_columns(items)
    if not columns:
        raise UsageError("no rows to label", where=rows.origin, cure="The file needs rows.")
    classes = predictor.task.labels.names if isinstance(predictor.task.labels, Classes) else ()
    added = name_columns(columns, classes)
    with (
        write_rows(output, [*columns, *added], format=format) as sink,
        _progress() as progress,
    ):
        bar = progress.add_task("labelling", total=None) if progress else None
        for row, prediction in _predict(predictor, items):
            values = (prediction.label, *prediction.scores)[: len(added)]
            # Choices that a row does not have stay empty.
            sink.write({**row, **dict(itertools.zip_longest(added, values))})
            if progress and bar is not None:
                progress.advance(bar)
    return report


def _predict(
    predictor: Predictor, items: Iterator[LocatedExample]
) -> Iterator[tuple[Row, Prediction]]:
    # The predictor reads a window of examples ahead; tee keeps the rows of that window.
    examples, located = itertools.tee(items)
    predictions = predictor.stream(item.example for item in examples)
    for prediction, item in zip(predictions, located, strict=True):
        yield item.row, prediction


def _progress() -> Any:
    """Counts rows on standard error if that is a terminal."""
    out = console(stderr=True)
    if not out.is_terminal:
        return nullcontext()
    count = TextColumn("{task.completed:,.0f} rows")
    return Progress(SpinnerColumn(), count, TimeElapsedColumn(), console=out, transient=True)
