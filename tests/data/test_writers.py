"""Writers: what is written is read back equal, and what cannot be is refused."""

import csv
import gzip
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune.data import name_columns, read_rows, write_rows
from task_formats import RowError, UsageError

Table = tuple[tuple[str, ...], list[dict[str, Any]]]

# A reader takes one mark at the head of a file for the file's own; NULs are refused.
text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")
    | st.sampled_from("\",\t\n\r \u2028\u0085\x0b\x0c'\\"),
    max_size=12,
)
plain = text.map(lambda value: value.translate(str.maketrans("\t\n\r", "   ")))
number = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
leaf = text | number | st.booleans() | st.none()
nested = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3)
)


@st.composite
def tables(draw: st.DrawFn, names: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> Table:
    """Columns, at least one, and rows that fill them."""
    columns = tuple(draw(st.lists(names, min_size=1, max_size=4, unique=True)))
    row = st.tuples(*[values for _ in columns])
    return columns, [
        dict(zip(columns, fields, strict=True)) for fields in draw(st.lists(row, max_size=6))
    ]


def there_and_back(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        with write_rows(path, columns) as sink:
            for row in rows:
                sink.write(row)
        assert os.listdir(folder) == [name]
        return [dict(row) for _, row in read_rows(path)]


# A header of one column without a name is an empty line.
named = text.filter(bool)


@given(tables(named, text), st.sampled_from(["t.csv", "t.csv.gz"]))
def test_csv(table: Table, name: str) -> None:
    assert there_and_back(name, *table) == table[1]


@given(tables(named, text))
def test_csv_is_what_the_standard_library_reads(table: Table) -> None:
    columns, rows = table
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with write_rows(path, columns) as sink:
            for row in rows:
                sink.write(row)
        with open(path, newline="", encoding="utf-8") as stream:
            assert list(csv.reader(stream)) == [
                list(columns),
                *(list(row.values()) for row in rows),
            ]


@given(tables(plain.filter(bool), plain))
def test_tsv(table: Table) -> None:
    assert there_and_back("t.tsv", *table) == table[1]


@given(tables(text, nested), st.sampled_from(["t.jsonl", "t.json", "t.jsonl.gz"]))
def test_json(table: Table, name: str) -> None:
    assert there_and_back(name, *table) == table[1]


@given(
    st.sampled_from(
        [text, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)]
    ).flatmap(lambda values: tables(text, values | st.none()))
)
def test_parquet(table: Table) -> None:
    assert there_and_back("t.parquet", *table) == table[1]


@given(tables(named, text))
def test_any_text_reaches_tsv_whole_or_is_refused(table: Table) -> None:
    columns, rows = table
    fits = not any(
        set(field) & set("\t\n\r")
        for row in [dict.fromkeys(columns, ""), *rows]
        for field in [*row, *row.values()]
    )
    if fits:
        assert there_and_back("t.tsv", columns, rows) == rows
    else:
        with pytest.raises(RowError, match=r"holds a tab or a line end\nWrite \.csv"):
            there_and_back("t.tsv", columns, rows)


def test_values_that_are_no_text_are_written_as_json_does(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    row = {"a": 0.1, "b": True, "c": None, "d": ["x", 1], "e": {"k": "é"}}
    with write_rows(path, [*row, "lacking"]) as sink:
        sink.write(row)
    assert path.read_text() == 'a,b,c,d,e,lacking\n0.1,true,,"[""x"", 1]","{""k"": ""é""}",\n'


def test_no_rows_leave_a_header(tmp_path: Path) -> None:
    for name, content in {
        "a.csv": "a,b\n",
        "a.tsv": "a\tb\n",
        "a.jsonl": "",
        "a.json": "[]\n",
    }.items():
        with write_rows(tmp_path / name, ["a", "b"]):
            pass
        assert (tmp_path / name).read_text() == content
    with write_rows(tmp_path / "a.parquet", ["a", "b"]):
        pass
    assert parquet.read_table(tmp_path / "a.parquet").column_names == ["a", "b"]


def test_parquet_in_batches(tmp_path: Path) -> None:
    rows = [{"a": None if k < 1200 else str(k), "b": k / 7} for k in range(2500)]
    assert there_and_back("t.parquet", ["a", "b"], rows) == rows
    mixed = [{"a": k} for k in range(1000)] + [{"a": "text"}]
    with pytest.raises(UsageError, match=r"several types.*\nWrite \.jsonl"):
        there_and_back("t.parquet", ["a"], mixed)


def write_until_it_fails(path: Path) -> None:
    with write_rows(path, ["a"]) as sink:
        for k in range(-1500, 1):
            sink.write({"a": str(1 / k)})


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    for name in ("out.tsv", "out.json", "out.parquet"):
        (tmp_path / name).write_text("before")
        with pytest.raises(ZeroDivisionError):
            write_until_it_fails(tmp_path / name)
        assert (tmp_path / name).read_text() == "before"
    assert len(os.listdir(tmp_path)) == 3


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="cannot be written"),
        write_rows(tmp_path / "no" / "o.csv", ["a"]),
    ):
        pass
    with (
        pytest.raises(UsageError, match="unknown kind of file"),
        write_rows(tmp_path / "o.txt", ["a"]),
    ):
        pass


def test_links_and_devices_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link.csv", "pipe.csv"):
        with write_rows(tmp_path / name, ["a"]) as sink:
            sink.write({"a": "1"})
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "a\n1\n"
    assert os.read(reader, 100) == b"a\n1\n"
    os.close(reader)


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_standard_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError("a pipe has no position")

    pipe = Pipe()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    with write_rows("-", ["a", "b"], format=format) as sink:
        sink.write({"a": "é", "b": "2"})
    path = tmp_path / f"copy.{format}"
    path.write_bytes(pipe.getvalue())
    assert [dict(row) for _, row in read_rows(path)] == [{"a": "é", "b": "2"}]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.csv.gz", "two.csv.gz"):
        with write_rows(tmp_path / name, ["a"]) as sink:
            sink.write({"a": "1"})
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.csv.gz").read_bytes()) == b"a\n1\n"


def test_added_columns_do_not_clash() -> None:
    assert name_columns(["text"], ["no", "yes"]) == ("label", ("probability_no", "probability_yes"))
    assert name_columns(["label", "probability_no"], ["no"]) == (
        "predicted_label",
        ("predicted_probability_no",),
    )
    with pytest.raises(UsageError, match="'label' and 'predicted_label'"):
        name_columns(["label", "predicted_label"])


@given(st.lists(st.sampled_from(["label", "predicted_label", "probability_a", "a"]), unique=True))
def test_added_columns_are_new(original: list[str]) -> None:
    try:
        added = name_columns(original, ["a", "b"])
    except UsageError:
        assert {"label", "predicted_label"} <= {*original}
    else:
        names = [added.label, *added.scores]
        assert len({*names, *original}) == len(names) + len(original)


def test_deep_values_are_refused(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for name in ("deep.jsonl", "deep.csv"):
        with (
            pytest.raises(RowError, match="nested too deeply"),
            write_rows(tmp_path / name, ["a"]) as sink,
        ):
            sink.write({"a": deep})
