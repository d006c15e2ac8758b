"""RACE's own files: one passage of several questions each, read as one row per question."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune.data.readers.json import read_json
from finetune.data.rows import LocatedRow, RowLocation
from task_formats import Row, RowError, UsageError

_COLUMNS = ("example_id", "article", "question", "options", "answer")
_CURE = "A RACE file holds article, questions, options and answers, one of each per question."


def read_race(stream: BinaryIO, file: str) -> Iterator[LocatedRow]:
    """Yields the questions of one passage with the columns of the hub's copy.

    In: `{"id": "3.txt", "article": a, "questions": [q], "options": [[...]], "answers": [x]}`.
    Out: `{"example_id": "3.txt", "article": a, "question": q, "options": [...], "answer": x}`.
    """
    try:
        passages = [passage for _, passage in read_json(stream, file)]
        rows = [row for passage in passages for row in _questions(passage)]
    except UsageError as error:
        what = f"not a passage of RACE: {error.what}"
        yield RowLocation(file, 1), RowError(what, where=file, cure=_CURE)
        return
    for number, row in enumerate(rows, start=1):
        yield RowLocation(file, number, "question"), row


def _questions(passage: Row | RowError) -> list[dict[str, Any]]:
    if isinstance(passage, RowError):
        raise passage
    article, questions = passage.get("article"), passage.get("questions")
    options, answers = passage.get("options"), passage.get("answers")
    if not isinstance(article, str) or not isinstance(questions, list):
        raise UsageError("no article or no list of questions")
    # Some copies of the test files have no answers.
    lists = [questions, options, answers if answers is not None else [None] * len(questions)]
    if any(not isinstance(items, list) or len(items) != len(questions) for items in lists):
        raise UsageError("questions, options and answers differ in number")
    shared = (passage.get("id", ""), article)
    return [
        dict(zip(_COLUMNS, (*shared, *items), strict=True)) for items in zip(*lists, strict=True)
    ]
