"""Rows of Excel and OpenDocument workbooks, read with calamine."""

import datetime
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.csv import make_columns
from finetune.data.readers.text import first_line
from finetune.data.rows import LocatedRow, ReadOptions, RowLocation, number_columns
from finetune.optional_packages import require_package
from task_formats import UsageError, suggest


def read_workbook(stream: BinaryIO, file: str, options: ReadOptions) -> Iterator[LocatedRow]:
    """Yields the rows of the first sheet, or of the one called `options.split`.

    Whole numbers are integers, times are text in ISO 8601, and empty cells are empty text. Empty
    rows are skipped.

    Raises:
        UsageError: It is not a workbook, has no such sheet, or calamine is not installed.
    """
    workbook = _open(stream, file)
    names = workbook.sheet_names
    if options.split is not None and options.split not in names:
        cure = suggest(options.split, names)
        raise UsageError(f"no sheet {options.split!r}", where=file, cure=cure)
    sheet = workbook.get_sheet_by_name(options.split or names[0])
    columns: tuple[str, ...] = ()
    for number, cells in enumerate(sheet.to_python(skip_empty_area=False), start=1):
        values = list(map(_convert, cells))
        if not any(value != "" for value in values):
            continue
        if not columns and options.header is not False:
            columns = make_columns(list(map(str, values)), file, options)
            continue
        columns = columns or number_columns(len(values))
        row = dict(zip(columns, [*values, *[""] * len(columns)], strict=False))
        yield RowLocation(file, number, "row"), row
    if not columns:
        raise UsageError("the sheet is empty", where=file, cure="It needs a header and rows.")


def list_sheets(stream: BinaryIO, file: str) -> list[str]:
    """Names of the sheets of a workbook."""
    return list(_open(stream, file).sheet_names)


def describe_workbook(stream: BinaryIO, file: str, options: ReadOptions) -> str:
    """Says which of several sheets is read; empty if there is one."""
    names = list_sheets(stream, file)
    if len(names) < 2 or options.split is not None:
        return ""
    return f"sheet {names[0]!r} of {len(names)}, the first"


def _open(stream: BinaryIO, file: str) -> Any:
    otherwise = "save the sheet as CSV."
    require_package("python_calamine", "excel", "a workbook", where=file, otherwise=otherwise)
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        return CalamineWorkbook.from_filelike(stream)
    except CalamineError as error:
        what = f"not a workbook that can be read: {first_line(error)}"
        raise UsageError(what, where=file, cure="Save the sheet as CSV.") from None


def _convert(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else value
