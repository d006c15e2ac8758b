"""Rows that are written are read back equal; what a format cannot hold is refused."""

import csv
import gzip
import io
import json
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
from task_formats import UsageError

Table = tuple[tuple[str, ...], list[dict[str, Any]]]

# Readers drop a byte order mark at the beginning of a file and refuse NULs.
text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")
    | st.sampled_from("\",\t\n\r \u2028\u0085\x0b\x0c'\\"),
    max_size=12,
)
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


def write(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Path:
    with write_rows(path, columns) as sink:
        for row in rows:
            sink.write(row)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(row) for _, row in read_rows(path)]


def write_and_read(name: str, table: Table) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        path = write(Path(folder, name), *table)
        assert os.listdir(folder) == [name]
        return read(path)


# A header of one column without a name is an empty line.
named = text.filter(bool)


numbers = [st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)]
parquet_tables = st.sampled_from([text, *numbers]).flatmap(
    lambda values: tables(text, values | st.none())
)


@pytest.mark.parametrize(
    ("names", "drawn"),
    [
        (["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz"], tables(named, text)),
        (["t.jsonl", "t.json", "t.jsonl.gz"], tables(text, nested)),
        (["t.parquet"], parquet_tables),
    ],
    ids=["csv", "json", "parquet"],
)
@given(data=st.data())
def test_what_is_written_is_read_back(
    names: list[str], drawn: st.SearchStrategy[Table], data: st.DataObject
) -> None:
    table = data.draw(drawn)
    assert write_and_read(data.draw(st.sampled_from(names)), table) == table[1]


@given(tables(named, text))
def test_csv_is_what_the_standard_library_reads(table: Table) -> None:
    with TemporaryDirectory() as folder:
        path = write(Path(folder, "t.csv"), *table)
        with open(path, newline="", encoding="utf-8") as stream:
            lines = list(csv.reader(stream))
    assert lines == [list(table[0]), *(list(row.values()) for row in table[1])]


QUOTES = st.sampled_from(['"', '""', "a", ";", "|", " ", "\t", "\n", "\r", ",", "\u2028"])
quoted = st.lists(QUOTES, max_size=6).map("".join)


@given(tables(quoted.filter(bool), quoted), st.sampled_from(["t.csv", "t.tsv"]))
def test_quotes_and_delimiters_are_read_back(table: Table, name: str) -> None:
    assert write_and_read(name, table) == table[1]


def test_values_other_than_text_are_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    row = {"a": 0.1, "b": True, "c": None, "d": ["x", 1], "e": {"k": "é"}}
    write(path, [*row, "missing"], [row])
    assert path.read_text() == 'a,b,c,d,e,missing\n0.1,true,,"[""x"", 1]","{""k"": ""é""}",\n'


@pytest.mark.parametrize(
    ("ending", "content"), [("csv", "a,b\n"), ("tsv", "a\tb\n"), ("jsonl", ""), ("json", "[]\n")]
)
def test_no_rows_leave_a_header(tmp_path: Path, ending: str, content: str) -> None:
    assert write(tmp_path / f"a.{ending}", ["a", "b"], []).read_text() == content


def test_parquet_in_batches(tmp_path: Path) -> None:
    empty = write(tmp_path / "a.parquet", ["a", "b"], [])
    assert parquet.read_table(empty).column_names == ["a", "b"]
    rows = [{"a": None if k < 1200 else str(k), "b": k / 7} for k in range(2500)]
    assert write_and_read("t.parquet", (("a", "b"), rows)) == rows
    mixed = [{"a": k} for k in range(1000)] + [{"a": "text"}]
    with pytest.raises(UsageError, match=r"several types.*\nWrite \.jsonl"):
        write_and_read("t.parquet", (("a",), mixed))


def write_until_it_fails(path: Path) -> None:
    with write_rows(path, ["a"]) as sink:
        for k in range(-1500, 1):
            sink.write({"a": str(1 / k)})


@pytest.mark.parametrize("name", ["out.tsv", "out.json", "out.parquet"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("before")
    with pytest.raises(ZeroDivisionError):
        write_until_it_fails(tmp_path / name)
    assert (tmp_path / name).read_text() == "before"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "message"), [("no/o.csv", "cannot be written"), ("o.txt", "unknown kind of file")]
)
def test_a_file_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / name, ["a"], [])


def test_pipes_are_written_to_also_through_links(tmp_path: Path) -> None:
    """As /dev/stdout and the /dev/fd/63 of a shell are."""
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    read_end, write_end = os.pipe()
    for path in (pipe, Path(f"/dev/fd/{write_end}")):
        with write_rows(path, ["a"], format="csv") as sink:
            sink.write({"a": "1"})
    for end in (reader, read_end):
        assert os.read(end, 100) == b"a\n1\n"
    for end in (reader, read_end, write_end):
        os.close(end)


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_not_followed(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with pytest.raises(
        UsageError, match=r"link\.csv: a link, and links are not followed"
    ) as caught:
        write(tmp_path / "link.csv", ["a"], [{"a": "1"}])
    assert "Name the file itself" in caught.value.cure
    assert (tmp_path / "real.csv").exists() == exists
    assert not exists or (tmp_path / "real.csv").read_text() == "old"


def test_what_lies_at_the_name_of_an_unfinished_file_is_not_opened(tmp_path: Path) -> None:
    """Such as links that someone else has put into a shared folder."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f".out.csv.partial-{os.getpid()}").symlink_to(tmp_path / "precious")
    write(tmp_path / "out.csv", ["a"], [{"a": "1"}])
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "out.csv").read_text() == "a\n1\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda size: "known")
        (tmp_path / ".out.csv.known.partial").symlink_to(tmp_path / "precious")
        with pytest.raises(UsageError, match="File exists"):
            write(tmp_path / "out.csv", ["a"], [{"a": "2"}])
    assert (tmp_path / "precious").read_text() == "precious"


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
    (tmp_path / f"copy.{format}").write_bytes(pipe.getvalue())
    assert read(tmp_path / f"copy.{format}") == [{"a": "é", "b": "2"}]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{n}.csv.gz", ["a"], [{"a": "1"}]).read_bytes() for n in (1, 2))
    assert one == two
    assert gzip.decompress(one) == b"a\n1\n"


def test_added_columns_do_not_clash() -> None:
    assert name_columns(["text"], ["no", "yes"]) == ["label", "probability_no", "probability_yes"]
    taken = ["label", "probability_no"]
    assert name_columns(taken, ["no"]) == ["predicted_label", "predicted_probability_no"]
    with pytest.raises(UsageError, match="'label' and 'predicted_label'"):
        name_columns(["label", "predicted_label"])


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    row = {"a": float("nan"), "b": [1.0, {"c": float("-inf")}], "d": 2.5}
    for name in ("rows.jsonl", "rows.json"):
        content = write(tmp_path / name, list(row), [row]).read_text()
        read_back = json.loads(content, parse_constant=refuse)
        expected = {"a": None, "b": [1.0, {"c": None}], "d": 2.5}
        assert read_back == (expected if name == "rows.jsonl" else [expected])


def test_rows_on_a_terminal_have_their_control_characters_escaped(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    for kind, shown in ((Terminal, b"a\\x1b[2Jb\n"), (io.TextIOWrapper, b"a\x1b[2Jb\n")):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", kind(raw))
        with write_rows("-", ["x"], format="csv") as sink:
            sink.write({"x": "a\x1b[2Jb"})
        assert raw.getvalue() == b"x\n" + shown
