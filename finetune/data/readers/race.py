"""RACE's own files: one passage of several questions each, read as one row per question."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.json import read_json
from finetune.data.rows import LocatedRow, RowLocation
from task_formats import Row, RowError

_COLUMNS = ("example_id", "article", "question", "options", "answer")
_CURE = "A RACE file holds article, questions, options and answers, one of each per question."


def read_race(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields the questions of one passage with the columns of the hub's copy.

    In: `{"id": "3.txt", "article": a, "questions": [q], "options": [[...]], "answers": [x]}`.
    Out: `{"example_id": "3.txt", "article": a, "question": q, "options": [...], "answer": x}`.
    """
    try:
        rows = [row for _, passage in read_json(stream, file) for row in _questions(passage)]
    except (ValueError, KeyError, TypeError) as error:
        what = f"not a passage of RACE: {getattr(error, 'what', error)}"
        yield RowLocation(file, 1), RowError(what, where=file, cure=_CURE)
        return
    for number, row in enumerate(rows, start=1):
        yield RowLocation(file, number, "question"), row


def _questions(passage: Row | RowError) -> Iterator[dict[str, Any]]:
    if isinstance(passage, RowError):
        raise passage
    shared, questions = (passage.get("id", ""), passage["article"]), passage["questions"]
    # Some copies of the test files have no answers.
    answers = passage.get("answers", [None] * len(questions))
    for items in zip(questions, passage["options"], answers, strict=True):
        yield dict(zip(_COLUMNS, (*shared, *items), strict=True))
