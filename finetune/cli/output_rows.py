"""Rows that a command writes: their format, their columns, and the predictions added to them."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from finetune.cli.console import console
from finetune.data import ReadReport, RowLocation, Rows, detect_format, name_columns, write_rows
from finetune.data.examples import LocatedExample, build_examples
from finetune.data.windows import memory_size, split_into_windows
from finetune.data.writers import check_output
from task_formats import Row, RowError, UsageError

if TYPE_CHECKING:
    from finetune.evaluation.predictor import Predictor

_LOOK_AHEAD = 1000
"""Number of first rows that determine the columns of the output; fewer if they are large."""

Located = TypeVar("Located", LocatedExample, tuple[RowLocation, Row])
"""A location and its row, perhaps with the example made of it."""


def choose_format(output: str, format: str | None = None, *, source: str = "-") -> str:
    """The format of the output; UsageError if it is unknown, or the output cannot be written."""
    if output == "-" and format is None:
        what = "the format of standard output is unknown"
        raise UsageError(what, cure="Name a file with -o.")
    target = Path(output).absolute()
    if not target.parent.is_dir():
        what = f"there is no folder {str(Path(output).parent)!r}"
        raise UsageError(what, where=output, cure="Create it, or name another file with -o.")
    check_output(target)
    if target.exists() and source != "-" and target.samefile(source):
        raise UsageError(f"{output} is also the input file", cure="Name another one with -o.")
    return detect_format(output, format)


def find_columns(items: Iterable[Located]) -> tuple[list[str], Iterator[Located]]:
    """Finds the columns of a stream of rows from its first rows.

    Returns:
        The columns (empty without rows), and an iterator over all rows, which raises RowError at
        a row with another column.
    """
    remaining = iter(items)
    first = next(split_into_windows(remaining, _LOOK_AHEAD, memory_size), [])
    columns, number = list(dict.fromkeys(name for item in first for name in item[1])), len(first)
    first.reverse()

    def check() -> Iterator[Located]:
        # Rows are removed as they are used, so that they are not held until the end.
        for item in itertools.chain((first.pop() for _ in range(number)), remaining):
            if unknown := sorted(set(item[1]) - set(columns)):
                what = f"the column {unknown[0]!r} is in none of the first {number:,} rows"
                cure = "Give every row the same columns."
                raise RowError(what, where=str(item[0]), cure=cure)
            yield item

    return columns, check()


def label_rows(
    predictor: "Predictor",
    rows: Rows,
    output: str,
    format: str,
    *,
    on_bad_row: Literal["stop", "skip"] = "stop",
) -> ReadReport:
    """Writes every row with its prediction, and reports which rows were left out.

    Raises:
        UsageError: There are no rows.
        RowError: A row cannot be predicted, or has a column that none of the first ones has.
    """
    from finetune.evaluation.evaluate import WINDOW

    report = ReadReport()
    task = predictor.task.without_labels()
    columns, items = find_columns(
        build_examples(
            task, rows.read(), "row", labelled=False, on_bad_row=on_bad_row, report=report
        )
    )
    if not columns:
        raise UsageError("no rows to label", where=rows.origin, cure="The file needs rows.")
    added = name_columns(columns, predictor.task.labels.names)
    out = console(stderr=True)
    bar = (SpinnerColumn(), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    with (
        write_rows(output, [*columns, *added], format=format) as sink,
        Progress(*bar, console=out, transient=True, disable=not out.is_terminal) as progress,
    ):
        counter = progress.add_task("labelling", total=None)
        for window in split_into_windows(items, WINDOW, memory_size):
            predictions = predictor.stream(item.example for item in window)
            for prediction, item in zip(predictions, window, strict=True):
                label = prediction.label
                several = list(label) if isinstance(label, tuple) else label
                values = (several, *prediction.scores)[: len(added)]
                # Choices that a row does not have stay empty.
                sink.write({**item.row, **dict(itertools.zip_longest(added, values))})
                progress.advance(counter)
    return report
