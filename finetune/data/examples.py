"""From rows to examples, with what is done about the rows that cannot become one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

from finetune.data.rows import RowLocation, Rows, Scanned
from finetune.data.sources import open_rows
from finetune.recipe.schema import DataConfig
from task_formats import Classes, Example, Row, RowError, Task, UsageError
from task_formats.labels import as_text
from task_formats.templates import look_up


class BadRow(NamedTuple):
    """A row that was left out: where it stands, its id, and why."""

    place: RowLocation
    id: str
    what: str


@dataclass
class ReadReport:
    """What became of the rows; it fills while the examples are read."""

    skipped: list[BadRow] = field(default_factory=list)
    unlabelled: int = 0
    """Rows left out because their raw label means "no label"."""
    rows: int = 0
    """Rows read, the left out ones included."""

    @property
    def examples(self) -> int:
        """Rows that became an example."""
        return self.rows - self.unlabelled - len(self.skipped)


def read_examples(
    task: Task,
    rows: Rows,
    split: str,
    *,
    labelled: bool = True,
    on_bad_row: Literal["stop", "skip"] = "stop",
    limit: int | None = None,
) -> tuple[Iterator[Example], ReadReport]:
    """The examples of a split, streamed, and the report that fills meanwhile.

    An id is `split/index`, the index counted from 0 over all rows of the split. `limit` counts
    rows. Where labels are wanted, rows whose raw label is in `task.unlabelled` are left out.
    Raises RowError at a bad row unless it is to be skipped, and UsageError where no row is good.
    """
    report = ReadReport()
    scanned = islice(rows.scan(), limit)
    stop = on_bad_row == "stop"
    return _examples(task, scanned, rows.origin, split, labelled, stop, report), report


def read_split(
    task: Task,
    config: DataConfig,
    role: Literal["train", "evaluate"],
    *,
    labelled: bool = True,
    limit: int | None = None,
) -> list[Example]:
    """Returns the examples of a split that the recipe names; UsageError if it names none."""
    split = config.train if role == "train" else config.evaluate
    if split is None:
        cure = "Name a split or a file."
        raise UsageError(f"data.{role} is not set", where=f"data.{role}", cure=cure)
    rows, on_bad_row = open_rows(config, split), config.on_bad_row
    examples, _ = read_examples(
        task, rows, split, labelled=labelled, on_bad_row=on_bad_row, limit=limit
    )
    return list(examples)


def _examples(
    task: Task,
    scanned: Iterator[Scanned],
    origin: str,
    split: str,
    labelled: bool,
    stop: bool,
    report: ReadReport,
) -> Iterator[Example]:
    sets_aside = labelled and bool(task.unlabelled)
    for index, (place, row) in enumerate(scanned):
        report.rows = index + 1
        name = f"{split}/{index}"
        try:
            if isinstance(row, RowError):
                raise row
            if sets_aside and _set_aside(task, row):
                report.unlabelled += 1
                continue
            example = _example(task, row, name, labelled, place)
        except RowError as error:
            if stop:
                raise
            report.skipped.append(BadRow(place, name, error.what))
        else:
            yield example
    if not report.examples:
        raise _nothing(report, origin)


def _example(task: Task, row: Row, id: str, labelled: bool, place: RowLocation) -> Example:
    try:
        return task.example(row, id, labelled=labelled)
    except RowError as error:
        raise error.located(f"{place} ({id})") from None


def _set_aside(task: Task, row: Row) -> bool:
    """True where the raw label means "no label": on the hub, SNLI's "-" has become -1."""
    row = task.read(row) if task.read else row
    try:
        text = as_text(look_up(row, str(task.columns.get("label"))))
    except KeyError:
        return False
    return text in task.unlabelled or (
        text == "-1" and isinstance(task.labels, Classes) and text not in task.labels.raw
    )


def _nothing(report: ReadReport, origin: str) -> UsageError:
    if not report.rows:
        return UsageError("no rows", where=origin, cure="The file has a header at most.")
    if not report.skipped:
        what = f"none of {report.rows} rows has a label"
        return UsageError(what, where=origin, cure="Look at task.unlabelled.")
    first = report.skipped[0]
    return UsageError(
        f"none of {report.rows} rows can be used; the first: {first.what}",
        where=str(first.place),
        cure="Do task.columns and task.labels fit this file?",
    )
