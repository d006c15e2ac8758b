"""Rows that a command writes: their format, their columns, and the predictions added to them."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from finetune.data import ReadReport, RowLocation, Rows, name_columns
from finetune.data.chunks import memory_size, split_into_chunks
from finetune.data.examples import BadRow, RowToPredict, build_rows_to_predict
from finetune.data.partial_output import changed_since, name_part, open_partial_output
from finetune.data.readers.files import detect_output_format
from finetune.data.writers import check_output
from finetune.progress import Progress
from task_formats import Prediction, Row, RowError, Task, UsageError, suggest

if TYPE_CHECKING:
    from finetune.evaluation.predictor import Predictor

_LOOK_AHEAD = 1000
"""Number of first rows that determine the columns of the output; fewer if they are large."""

Located = TypeVar("Located", RowToPredict, tuple[RowLocation, Row])
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
    return detect_output_format(output, format)


def find_columns(items: Iterable[Located]) -> tuple[list[str], Iterator[Located]]:
    """Finds the columns of a stream of rows from its first rows.

    Returns:
        The columns (empty without rows), and an iterator over all rows, which raises RowError at
        a row with another column.
    """
    first_values, number, items = _peek_columns(items)
    columns = list(first_values)

    def check() -> Iterator[Located]:
        for item in items:
            if unknown := sorted(set(item[1]) - set(columns)):
                raise _unknown_column(unknown[0], number, item[0])
            yield item

    return columns, check()


def _peek_columns(items: Iterable[Located]) -> tuple[dict[str, Any], int, Iterator[Located]]:
    """The columns of the first rows with a value of each, the number of these rows, all rows."""
    remaining = iter(items)
    first = next(split_into_chunks(remaining, _LOOK_AHEAD, memory_size), [])
    values: dict[str, Any] = {}
    for item in first:
        values |= {k: value for k, value in item[1].items() if values.get(k) is None}
    number = len(first)
    first.reverse()
    # Rows are removed as they are used, so that they are not held until the end.
    return values, number, itertools.chain((first.pop() for _ in range(number)), remaining)


def _unknown_column(name: str, number: int, location: RowLocation) -> RowError:
    what = f"the column {name!r} is in none of the first {number:,} rows"
    return RowError(what, where=str(location), cure="Give every row the same columns.")


def label_rows(
    predictor: "Predictor",
    rows: Rows,
    output: str,
    format: str,
    *,
    on_bad_row: Literal["stop", "skip"] = "skip",
    limit: int | None = None,
    **options: Any,
) -> ReadReport:
    """Writes every row with its prediction, as `open_partial_output` does with its options.

    With "skip" every row of the input is in the output: a bad one has an empty label, and the
    reason in the column `error`. With "stop" the first bad row ends the output after the rows
    before it.

    Raises:
        UsageError: There are no rows, or none of the first ones has a column of the task.
        RowError: A row cannot be predicted, or has a column that none of the first ones has.
    """
    from finetune.evaluation.evaluate import CHUNK_ROWS

    report = ReadReport()
    located = itertools.islice(rows.read(), limit)
    first_values, number, items = _peek_columns(
        build_rows_to_predict(predictor.task, located, "row", report)
    )
    columns = list(first_values)
    if not number:
        raise UsageError("no rows to label", where=rows.origin, cure="The file needs rows.")
    _check_task_columns(predictor.task, first_values, rows.origin)
    items = (_check_columns(item, columns, number, report) for item in items)
    classes = predictor.task.labels.names
    added = name_columns(columns, classes, errors=on_bad_row == "skip")
    error_column = added[-1] if on_bad_row == "skip" else None
    prediction_columns = added[:-1] if error_column else added
    counter = hashlib.sha256()
    total = min(filter(None, (rows.estimate_count(), limit)), default=None)
    with open_partial_output(output, [*columns, *added], format=format, **options) as sink:
        done = 0
        for item in itertools.islice(items, sink.rows):
            counter.update(_digest_text(item))
            done += 1
        if done and counter.hexdigest() != sink.digest:
            raise changed_since(name_part(output), ["the input"])
        with Progress("predicting", total, done=done) as progress:
            for items_read in split_into_chunks(items, CHUNK_ROWS, memory_size):
                chunk = items_read if error_column else _until_error(items_read)
                for item, prediction in _predict(predictor, chunk, progress):
                    values: dict[str, Any] = dict.fromkeys(added)
                    if prediction is not None:
                        values |= _prediction_values(prediction, prediction_columns)
                    elif error_column is None:
                        raise cast(RowError, item.error)
                    else:
                        values[error_column] = _describe_error(item)
                    sink.write({**{n: item.row[n] for n in columns if n in item.row}, **values})
                    counter.update(_digest_text(item))
                done += len(chunk)
                sink.commit(done, counter.hexdigest())
    return report


def _check_task_columns(task: Task, row: Row, origin: str) -> None:
    """Raises UsageError if a column of the task is missing."""
    if task.convert_row is None and (missing := sorted(task.missing_columns(row))):
        what = f"no column {', '.join(map(repr, missing))}"
        raise UsageError(what, where=origin, cure=suggest(missing[0], row))


def _predict(
    predictor: "Predictor", chunk: Sequence[RowToPredict], progress: Progress
) -> Iterator[tuple[RowToPredict, Prediction | None]]:
    """Yields every row with its prediction, or with None if it has an error."""
    examples = [item.example for item in chunk if item.example is not None]
    predictions = predictor.stream(examples, progress)
    for item in chunk:
        if item.example is None:
            progress.advance()
        yield item, None if item.example is None else next(predictions)
    for extra in predictions:
        raise RuntimeError(f"a prediction without a row: {extra.id}")


def _prediction_values(prediction: Prediction, columns: Sequence[str]) -> dict[str, Any]:
    """Label and probabilities; choices that a row does not have stay empty."""
    label = prediction.label
    several = list(label) if isinstance(label, tuple) else label
    # A score is the label itself, and has no column of its own.
    return dict(zip(columns, (several, *prediction.scores), strict=False))


def _check_columns(
    item: RowToPredict, columns: Sequence[str], number: int, report: ReadReport
) -> RowToPredict:
    """The row, or an error if it has a column for which the output has no place."""
    unknown = sorted(set(item.row) - set(columns))
    if not unknown or item.error:
        return item
    error = _unknown_column(unknown[0], number, item.location)
    report.skip(BadRow(item.location, "", error.what))
    return item._replace(example=None, error=error)


def _until_error(items: Sequence[RowToPredict]) -> list[RowToPredict]:
    """The rows to the first one with an error, that one included."""
    bad = next((n for n, item in enumerate(items) if item.error), len(items))
    return list(items[: bad + 1])


def _describe_error(item: RowToPredict) -> str:
    """What is wrong with a row, and where the row is in its file."""
    what = cast(RowError, item.error).what
    return f"{item.location.unit} {item.location.number}: {what}"


def _digest_text(item: RowToPredict) -> bytes:
    return f"{item.row!r}{item.error and item.error.what}\n".encode(errors="surrogatepass")
