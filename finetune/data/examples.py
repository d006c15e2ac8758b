"""Rows to examples: the one step where a row becomes an Example, for every use of a task."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal, NamedTuple, cast

from finetune.data.limits import LimitedRows
from finetune.data.rows import LocatedRow, RowLocation, Rows
from finetune.progress import Progress
from task_formats import Classes, Example, Row, RowError, Task, UsageError
from task_formats.labels import as_text
from task_formats.templates import look_up


class BadRow(NamedTuple):
    """A row that was skipped."""

    location: RowLocation
    id: str
    reason: str


LISTED_BAD_ROWS = 10
"""Bad rows that are listed; of the others only the number is kept, as a file may have millions."""


@dataclass
class ReadReport:
    """Counts rows while they are read."""

    skipped: list[BadRow] = field(default_factory=list)
    """The first rows that were skipped, at most LISTED_BAD_ROWS."""
    more_skipped: int = 0
    """How many others were skipped."""
    unlabelled: int = 0
    """Rows left out because their raw label means "no label"."""
    rows: int = 0
    """All rows that were read, including those left out."""
    is_drawn: bool = False
    """Whether a limit took a stratified part instead of the first rows."""
    cache_error: str = ""
    """Why the encoded rows could not be kept in the cache."""

    @property
    def num_skipped(self) -> int:
        """All rows that were skipped."""
        return len(self.skipped) + self.more_skipped

    @property
    def examples(self) -> int:
        """Rows that became an example."""
        return self.rows - self.unlabelled - self.num_skipped

    def skip(self, row: BadRow) -> None:
        """Counts a bad row, and lists it if it is one of the first."""
        if len(self.skipped) < LISTED_BAD_ROWS:
            self.skipped.append(row)
        else:
            self.more_skipped += 1

    def describe(self, origin: str) -> Iterator[str]:
        """Yields what the user should know; `origin` says where the rows come from."""
        if self.is_drawn:
            yield f"{origin} is sorted by label: the limit takes a stratified part of the rows"
        if self.unlabelled:
            yield f"{origin}: {self.unlabelled:,} rows without a label left out"
        for row in self.skipped:
            yield f"left out {row.id} ({row.location}): {row.reason}"
        if self.more_skipped:
            yield f"{origin}: {self.more_skipped:,} more bad rows left out"
        if self.cache_error:
            yield f"the encoded rows are not cached: {self.cache_error}"


class LocatedExample(NamedTuple):
    """An example, the row that it was made of, and where that row is."""

    location: RowLocation
    row: Row
    example: Example


def build_examples(
    task: Task,
    rows: Iterable[LocatedRow],
    split: str,
    *,
    labelled: bool = True,
    on_bad_row: Literal["stop", "skip"] = "stop",
    report: ReadReport | None = None,
    indices: Iterable[int] = (),
) -> Iterator[LocatedExample]:
    """Turns rows into examples, one at a time, and counts the rows in the report.

    Rows of a file or a data set are `open_rows(data, split).read()`. Rows in memory are
    `locate_rows(rows, "X")`; messages then name them X[0], X[1], ... For example

        (train.csv, line 2), {"text": "It rains", "label": "no"}

    of the split `train` becomes `Example("train/0", {"text": "It rains"}, (), 0)`: ids count all
    rows from 0. Of rows that are a part of a file, `indices` are their places in it
    (`Rows.indices`). With `labelled`, every example needs a label, and rows whose raw label is in
    `task.unlabelled` are left out. Prediction uses `task.without_labels()`.

    Raises:
        RowError: A row cannot become an example, and `on_bad_row` is "stop".
    """
    report = report if report is not None else ReadReport()
    # Code of a task may turn a row into another one; it runs once per row.
    convert, task = task.convert_row, replace(task, convert_row=None)
    for index, (location, row) in zip(indices or count(), rows, strict=False):
        report.rows += 1
        name = f"{split}/{index}"
        try:
            if isinstance(row, RowError):
                raise row
            converted = convert(row) if convert else row
            if labelled and task.unlabelled and _means_unlabelled(task, converted):
                report.unlabelled += 1
                continue
            example = task.example(converted, name, labelled=labelled)
        except RowError as error:
            if on_bad_row == "skip":
                report.skip(BadRow(location, name, error.what))
            elif error is row:  # It names its location.
                raise
            else:
                raise error.located(str(location)) from None
        else:
            yield LocatedExample(location, row, example)


class RowToPredict(NamedTuple):
    """A row with its example, or with the reason why it cannot be predicted."""

    location: RowLocation
    row: Row
    """Empty if the row cannot be read."""
    example: Example | None
    error: RowError | None


def build_rows_to_predict(
    task: Task, rows: Iterable[LocatedRow], split: str, report: ReadReport
) -> Iterator[RowToPredict]:
    """Turns every row into an example or an error, in order; the arguments are of `build_examples`.

    The label column is not read.
    """
    convert, task = task.convert_row, replace(task.without_labels(), convert_row=None)
    for index, (location, row) in enumerate(rows):
        report.rows = index + 1
        name = f"{split}/{index}"
        try:
            if isinstance(row, RowError):
                raise row
            example = task.example(convert(row) if convert else row, name, labelled=False)
        except RowError as error:
            report.skip(BadRow(location, name, error.what))
            if error is row:  # It names its location.
                yield RowToPredict(location, {}, None, error)
            else:
                located = error.located(str(location))
                yield RowToPredict(location, cast(Row, row), None, cast(RowError, located))
        else:
            yield RowToPredict(location, row, example, None)


def _means_unlabelled(task: Task, row: Row) -> bool:
    """Whether the raw label means "no label"; the hub's copies write -1 for SNLI's "-"."""
    try:
        text = as_text(look_up(row, str(task.columns.get("label"))))
    except KeyError:
        return "" in task.unlabelled
    return text in task.unlabelled or (
        text == "-1" and isinstance(task.labels, Classes) and text not in task.labels.raw
    )


def read_examples(
    task: Task,
    rows: Rows,
    split: str,
    *,
    labelled: bool = True,
    on_bad_row: Literal["stop", "skip"] = "stop",
    limit: int | None = None,
) -> tuple[Iterator[Example], ReadReport]:
    """Streams the examples of at most `limit` rows (see LimitedRows).

    The other arguments are those of `build_examples`.

    Returns:
        The examples, and the report that is filled while they are read. The iterator raises
        RowError as `build_examples` does, and UsageError at its end if there was no example.
    """
    report = ReadReport()
    total = min(filter(None, (rows.estimate_count(), limit)), default=None)

    limited = None if limit is None else LimitedRows(rows, task, limit)

    def examples() -> Iterator[Example]:
        used = limited or rows
        report.is_drawn = limited is not None and limited.is_drawn
        built = build_examples(
            task,
            used.read(),
            split,
            labelled=labelled,
            on_bad_row=on_bad_row,
            report=report,
            indices=used.indices(),
        )
        with Progress(f"reading {split}", total) as progress:
            for item in progress.count(built):
                yield item.example
        if not report.examples:
            raise _no_examples(report, rows.origin)

    return examples(), report


def _no_examples(report: ReadReport, origin: str) -> UsageError:
    if not report.rows:
        return UsageError("no rows", where=origin, cure="The file has at most a header.")
    none = f"none of {report.rows} rows"
    if not report.skipped:
        return UsageError(f"{none} has a label", where=origin, cure="Check task.unlabelled.")
    location, _, reason = report.skipped[0]
    cure = "Check task.columns and task.labels against this file."
    return UsageError(f"{none} can be used; the first: {reason}", where=str(location), cure=cure)
