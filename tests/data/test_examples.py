"""From rows to examples: ids, bad rows, rows without a label, limits and the report."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import (
    BadRow,
    LocatedRow,
    ReadReport,
    RowLocation,
    Rows,
    build_examples,
    locate_rows,
    open_file,
    read_examples,
)
from finetune.recipe.schema import TaskConfig
from task_formats import Example, Row, RowError, Task, UsageError

TASK = TaskConfig(
    format="classification",
    columns={"text": "text", "label": "label"},
    labels={0: "no", 1: "yes"},
    unlabelled=("-",),
).build()


class ListedRows(Rows):
    """Rows from a list: a text and a raw label, or None for a row that cannot be read."""

    origin = "list"

    def __init__(self, rows: Sequence[tuple[str, str] | None]) -> None:
        self.rows = rows

    def read(self) -> Iterator[LocatedRow]:
        for number, row in enumerate(self.rows, start=1):
            location = RowLocation("list", number)
            error = RowError("torn", where=str(location))
            yield location, error if row is None else {"text": row[0], "label": row[1]}

    def fingerprint(self) -> str:
        return ""


def outcome(row: tuple[str, str] | None) -> str:
    """What must become of a row, independently of the code under test."""
    if row is None:
        return "bad"
    text, label = row
    if label == "-":
        return "unlabelled"
    return "example" if text.strip() and label in ("0", "1", "no", "yes") else "bad"


raw_row = st.none() | st.tuples(
    st.sampled_from(["fine", "", " ", "NA", " x "]), st.sampled_from(["0", "yes", "-", "", "maybe"])
)


@given(st.lists(raw_row, max_size=12), st.integers(1, 12) | st.none())
def test_no_row_is_lost(rows: list[tuple[str, str] | None], limit: int | None) -> None:
    outcomes = [outcome(row) for row in rows[:limit]]
    examples, report = read_examples(
        TASK, ListedRows(rows), "train", on_bad_row="skip", limit=limit
    )
    ids = [f"train/{k}" for k, kind in enumerate(outcomes) if kind == "example"]
    labels = ["" if row is None else row[1] for row in rows]
    if len({*labels[:limit]}) == 1 < len({*labels}):  # A stratified part is drawn.
        with suppress(UsageError):
            ids = [example.id for example in examples]
            assert report.is_drawn
            assert len(ids) == report.examples
            assert ids == sorted(ids, key=lambda name: int(name[6:]))
        assert report.rows == len(outcomes)
        return
    if not ids:
        with pytest.raises(UsageError, match=r"no rows|none of"):
            list(examples)
    else:
        assert [example.id for example in examples] == ids
    assert report.rows == len(outcomes)
    assert report.unlabelled == outcomes.count("unlabelled")
    bad = [k for k, kind in enumerate(outcomes) if kind == "bad"]
    assert [(row.id, row.location.number) for row in report.skipped] == [
        (f"train/{k}", k + 1) for k in bad[:10]
    ]
    assert report.num_skipped == len(bad)
    assert report.examples == len(ids)


@given(st.lists(raw_row, min_size=1, max_size=12))
def test_the_first_bad_row_stops(rows: list[tuple[str, str] | None]) -> None:
    outcomes = [outcome(row) for row in rows]
    before = outcomes.index("bad") if "bad" in outcomes else len(rows)
    report = ReadReport()
    located = build_examples(TASK, ListedRows(rows).read(), "train", report=report)
    if "bad" in outcomes:
        with pytest.raises(RowError, match=f"list, line {before + 1}"):
            list(located)
        assert report.rows == before + 1
    else:
        assert len(list(located)) == outcomes.count("example")
    assert report.unlabelled == outcomes[:before].count("unlabelled")


def test_rows_in_memory_are_named_by_index() -> None:
    """Each example comes with its row, as prediction writes both."""
    rows = [{"text": "a", "label": "no"}, {"text": " ", "label": "no"}, {"text": "b"}]
    report = ReadReport()
    options = {"labelled": False, "on_bad_row": "skip", "report": report}
    items = list(build_examples(TASK.without_labels(), locate_rows(rows, "X"), "row", **options))
    assert [item.row for item in items] == [rows[0], rows[2]]
    assert [item.example for item in items] == [
        Example("row/0", {"text": "a"}),
        Example("row/2", {"text": "b"}),
    ]
    assert [str(item.location) for item in items] == ["X[0]", "X[2]"]
    assert [str(bad.location) for bad in report.skipped] == ["X[1]"]
    with pytest.raises(RowError, match=r"^X\[1\]: empty text"):
        list(build_examples(TASK, locate_rows(rows, "X"), "row"))


@given(st.lists(raw_row.filter(lambda row: row is not None and bool(row[0].strip())), min_size=1))
def test_without_labels_every_text_is_an_example(rows: list[tuple[str, str]]) -> None:
    good = [row for row in rows if row[1] != "maybe"]
    examples, report = read_examples(TASK, ListedRows(good), "predict", labelled=False)
    if good:
        assert [example.label for example in examples] == [
            {"0": 0, "yes": 1}.get(label) for _, label in good
        ]
        assert (report.rows, report.unlabelled) == (len(good), 0)


def test_an_error_names_file_line_row_and_cure(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\nfine\t1\nodd\tye\n")
    examples, _ = read_examples(TASK, open_file(path), "train")
    with pytest.raises(RowError) as caught:
        list(examples)
    assert caught.value.headline == f"{path}, line 3: unknown label 'ye'"
    assert caught.value.cure.startswith("Did you mean 'yes'?")


def test_of_many_bad_rows_ten_are_listed_and_all_are_counted() -> None:
    rows = ListedRows([("fine", "yes"), *[("fine", "maybe")] * 25])
    examples, report = read_examples(TASK, rows, "train", on_bad_row="skip")
    assert len(list(examples)) == report.examples == 1
    *listed, last = report.describe("list")
    assert listed == [
        f"left out train/{k} (list, line {k + 1}): unknown label 'maybe'" for k in range(1, 11)
    ]
    assert last == "list: 15 more bad rows left out"


def test_no_cure_is_looked_for_when_bad_rows_are_skipped(monkeypatch) -> None:
    """Among 20,000 classes that takes a quarter of a second per row."""

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("looked for a similar label")

    monkeypatch.setattr("task_formats.errors.get_close_matches", fail)
    rows = ListedRows([("fine", "yes"), ("fine", "maybe")])
    examples, report = read_examples(TASK, rows, "train", on_bad_row="skip")
    assert (len(list(examples)), report.num_skipped) == (1, 1)
    with pytest.raises(RowError) as caught:
        TASK.labels.parse("maybe")
    with pytest.raises(AssertionError, match="similar"):
        str(caught.value)


def test_the_report_lists_place_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_bytes(b"text\tlabel\nfine\t1\n\xff\t1\nfine\t0\t0\n \t1\nfine\t\n")
    examples, report = read_examples(TASK, open_file(path), "train", on_bad_row="skip")
    assert [example.id for example in examples] == ["train/0"]
    assert report == ReadReport(
        rows=5,
        skipped=[
            BadRow(RowLocation(str(path), 3), "train/1", "byte 0xff is not UTF-8"),
            BadRow(RowLocation(str(path), 4), "train/2", "3 fields under a header of 2"),
            BadRow(RowLocation(str(path), 5), "train/3", "empty text for 'text' in column 'text'"),
            BadRow(RowLocation(str(path), 6), "train/4", "no label"),
        ],
    )


@pytest.mark.parametrize(
    ("content", "what"),
    {
        "text,label\n": "no rows",
        "": "the file is empty",
        "text,label\na,-\nb,-\n": "none of 2 rows has a label",
        "words,label\na,1\nb,1\n": "none of 2 rows can be used; the first: no column 'text'",
    }.items(),
)
def test_no_usable_row(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(content)
    examples, _ = read_examples(TASK, open_file(path), "train", on_bad_row="skip")
    with pytest.raises(UsageError, match=what) as caught:
        list(examples)
    assert str(path) in caught.value.where
    assert caught.value.cure


def test_the_hubs_mark_for_no_label_counts_as_the_tasks_own() -> None:
    rows = ListedRows([("a", "-1"), ("b", "1"), ("c", "-")])
    examples, report = read_examples(TASK, rows, "train")
    assert [example.id for example in examples] == ["train/1"]
    assert report.unlabelled == 2
    sure = TaskConfig(
        format="classification", columns={"text": "text", "label": "label"}, labels={0: "a", 1: "b"}
    )
    with pytest.raises(RowError, match="no label"):
        list(read_examples(sure.build(), rows, "train")[0])


def test_a_task_that_reads_rows_by_code() -> None:
    def read(row: Row) -> Row:
        return {"text": row["text"] * 2, "label": row["label"]}

    task = Task(
        TASK.format, TASK.columns, TASK.labels, unlabelled=TASK.unlabelled, convert_row=read
    )
    examples, report = read_examples(task, ListedRows([("a", "1"), ("b", "-")]), "train")
    assert [example.fields["text"] for example in examples] == ["aa"]
    assert report.unlabelled == 1
