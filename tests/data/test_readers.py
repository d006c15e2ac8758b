"""Readers: the rows of every format, and messages that name the place and the cure."""

import gzip
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from finetune.data import FileRows, open_file, read_rows
from finetune.data.readers.parquet import read_parquet
from finetune.data.rows import MAX_COLUMNS, MAX_ROW_BYTES, ReadOptions
from finetune.pretraining import corpus
from task_formats import RowError, UsageError
from tests.fuzz.targets import OPTIONS, check_parquet, check_rows


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def rows_of(path: Path | str, **options: Any) -> list[dict[str, Any]]:
    return [dict(row) for _, row in read_rows(path, **options)]


AB = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
CONTENTS = {
    "csv": "a,b\n1,x\n2,y\n",
    "tsv": "a\tb\n1\tx\n2\ty\n",
    "jsonl": '{"a": "1", "b": "x"}\n{"a": "2", "b": "y"}\n',
    "ndjson": '{"a": "1", "b": "x"}\n\n{"a": "2", "b": "y"}',
    "json": '[{"a": "1", "b": "x"},\n {"a": "2", "b": "y"}]\n',
}


@pytest.mark.parametrize("format", CONTENTS)
@pytest.mark.parametrize("compressed", ["", ".gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_formats_agree(tmp_path: Path, format: str, compressed: str, mark: str, end: str) -> None:
    text = mark + CONTENTS[format].replace("\n", end)
    assert rows_of(write(tmp_path, f"rows.{format}{compressed}", text)) == AB


def test_parquet_is_read_like_the_others(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([*AB, {"a": None, "b": "z"}])
    parquet.write_table(table, tmp_path / "r.parquet", row_group_size=2)
    assert rows_of(tmp_path / "r.parquet") == [*AB, {"a": None, "b": "z"}]
    locations = [str(location) for location, _ in read_rows(tmp_path / "r.parquet")]
    assert locations[-1] == f"{tmp_path / 'r.parquet'}, row 3"


def test_objects_without_a_list_are_json_lines(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path, "rows.json", CONTENTS["jsonl"])) == AB


def test_missing_looking_words_are_text(tmp_path: Path) -> None:
    words = ["n/a", "NA", "null", "None", "nan", "", "0.10", "1e5", "True"]
    for name, comma in (("w.tsv", "\t"), ("w.csv", ",")):
        content = "\n".join(["word,k".replace(",", comma), *(f"{w}{comma}1" for w in words)])
        assert [row["word"] for row in rows_of(write(tmp_path, name, content))] == words


def test_tsv_has_no_quotes_and_one_line_end(tmp_path: Path) -> None:
    odd = ['"open', 'clo"se"', '""', "a\u2028b", "a\u0085b", "a\x0bb", "a\x0cb", "a\rb", "\x1c"]
    path = write(
        tmp_path, "odd.tsv", "".join(["k\ttext\n", *(f"{k}\t{t}\n" for k, t in enumerate(odd))])
    )
    assert [row["text"] for row in rows_of(path)] == odd
    assert [location.number for location, _ in read_rows(path)] == list(range(2, len(odd) + 2))


def test_quotes_of_csv(tmp_path: Path) -> None:
    path = write(tmp_path, "q.csv", 'a,b\n"x, ""y""\nz",1\n\n"a\u2028b",2\n3,4')
    assert rows_of(path) == [
        {"a": 'x, "y"\nz', "b": "1"},
        {"a": "a\u2028b", "b": "2"},
        {"a": "3", "b": "4"},
    ]
    assert [location.number for location, _ in read_rows(path)] == [2, 5, 6]


def test_one_empty_column_of_tsv_is_an_empty_text(tmp_path: Path) -> None:
    assert rows_of(write(tmp_path, "one.tsv", "a\nx\n\ny\n")) == [{"a": "x"}, {"a": ""}, {"a": "y"}]
    assert rows_of(write(tmp_path, "two.tsv", "a\tb\n\nx\ty\n\n")) == [{"a": "x", "b": "y"}]


def test_columns_of_a_file_without_header(tmp_path: Path) -> None:
    path = write(tmp_path, "bare.tsv", "1\tx\n2\ty\n")
    assert rows_of(path, columns=["a", "b"]) == AB
    named = write(tmp_path, "named.tsv", "z\ta\n9\t1\n")
    assert rows_of(named, columns=["a", "b"]) == [{"z": "9", "a": "1"}]


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(AB), table)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    contents = {kind: text.encode() for kind, text in CONTENTS.items()}
    for kind, raw in {**contents, "parquet": table.read_bytes()}.items():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(raw))))
        assert rows_of("-", format=kind) == AB, kind
    with pytest.raises(UsageError, match="standard input has no name"):
        read_rows("-")


BAD_ROWS = {
    "fields.tsv": ("a\tb\n1\t2\n1\t2\t3\n", "line 3", "3 fields under a header of 2"),
    "fields.csv": ("a,b\n1\n", "line 2", "1 fields under a header of 2"),
    "bytes.tsv": (b"a\tb\nx\tcaf\xe9\n", "line 2, byte 6", "byte 0xe9 is not UTF-8"),
    "bytes.csv": (b"a,b\nx,\xff\n", "line 2, byte 3", "byte 0xff is not UTF-8"),
    "bytes.jsonl": (b'{"a": "\xc3"}\n', "line 1, byte 8", "byte 0xc3 is not UTF-8"),
    "surrogate.tsv": (b"a\tb\n\xed\xa0\x80\t1\n", "line 2, byte 1", "is not UTF-8"),
    "nul.tsv": ("a\tb\n1\t\0\n", "line 2, byte 3", "a NUL byte"),
    "nul.csv": ("a,b\n1,\0\n", "line 2, byte 3", "a NUL byte"),
    "nul.jsonl": ('{"a": "\\u0000"}\n', "line 1", "is a NUL"),
    "half.jsonl": ('{"a": [{"b": "x\\ud83d"}]}\n', "line 1", "half of a surrogate pair"),
    "half.json": ('[{"a": "\\uDC00"}]', "line 1", "half of a surrogate pair"),
    "list.jsonl": ("[1]\n", "line 1", "a list, not an object"),
    "broken.jsonl": ('{"a": 1}\n{"a": \n', "line 2, column", "not JSON"),
    "deep.jsonl": ("[" * 100_000 + "\n", "line 1", "not JSON: maximum recursion depth"),
    "huge.jsonl": ('{"a": ' + "9" * 5000 + "}\n", "line 1", "not JSON: Exceeds the limit"),
    "stray.csv": ('a,b\n"x"y,1\n', "line 2", "a stray quote"),
    "return.csv": ("a,b\n1,x\r2,y\n", "line 2", "a carriage return outside quotes"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_and_the_next_is_read(tmp_path: Path, name: str) -> None:
    content, where, what = BAD_ROWS[name]
    good = {".tsv": "5\t6\n", ".csv": "5,6\n", ".jsonl": '{"a": "5", "b": "6"}\n', ".json": ""}
    raw = content.encode() if isinstance(content, str) else content
    path = write(tmp_path, name, raw + good[Path(name).suffix].encode())
    rows = [row for _, row in open_file(path).read()]
    [fault] = [row for row in rows if isinstance(row, RowError)]
    assert where in fault.where
    assert what in fault.what
    assert rows[-1] == (fault if name.endswith(".json") else {"a": "5", "b": "6"})
    with pytest.raises(RowError, match=r"^" + str(path)):
        rows_of(path)


BAD_FILES = {
    "empty.csv": ("", "the file is empty"),
    "empty.tsv": ("\n\n", "the file is empty"),
    "empty.json": (" ", "the file is empty"),
    "twice.csv": ("a,b,a\n1,2,3\n", "the header has 'a' twice"),
    "swallowed.csv": ('a,b\n"x,1\ny,2\n', "a quote that is never closed"),
    "merged.csv": ('a,b\n"x,1\n"y,2\n', "a stray quote"),
    "utf16.csv": ("a,b\n1,2\n".encode("utf-16") + b"x", "is not utf-16"),
    "packed.csv": (gzip.compress(b"a,b\n1,2\n", mtime=0), "this looks like gzip"),
    "torn.csv.gz": (None, "cannot be read"),
    "not.csv.gz": (None, "cannot be read"),
    "wide.tsv": ("\t".join(map(str, range(1_000_000))), "more than 10,000 columns"),
    "wide.csv": (",".join(map(str, range(1_000_000))), "more than 10,000 columns"),
    "long.tsv": ("a\n" + "x" * (MAX_ROW_BYTES + 1), "a row of more than"),
    "long.csv": ("a\n" + "x" * (MAX_ROW_BYTES + 1), "a row of more than"),
    "lines.csv": ('a\n"' + f"{'x' * 999}\n" * (MAX_ROW_BYTES // 1000 + 1), "a row of more than"),
    "long.jsonl": ('{"a": "' + "x" * MAX_ROW_BYTES + '"}', "a row of more than"),
    "long.json": ('[{"a": "' + "x" * (2 * MAX_ROW_BYTES) + '"}]', "a row of more than"),
    "list.json": ("[1, 2]", "not a list of objects"),
    "torn.json": ('[{"a": 1},', "not a list of objects"),
    "torn2.json": ('[{"a": 1}, {"a"', "not JSON"),
    "after.json": ("[] x", "not a list of objects"),
    "deep.json": ('[{"a":' + "[" * 100_000, "maximum recursion depth"),
    "bytes.json": (b'[{"a": "\xff"}]', "byte 0xff is not UTF-8"),
    "text.json": ('"a"', "not a list of objects"),
    "no.parquet": ("a,b\n1,2\n", "not a complete Parquet file"),
    "rows.xlsx": ("", "not a workbook that can be read"),
    "rows.doc": ("", "unknown kind of file '.doc'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused(tmp_path: Path, name: str) -> None:
    content, what = BAD_FILES[name]
    path = write(tmp_path, name, content if content is not None else "a,b\n" * 100)
    if content is None:
        path.write_bytes(path.read_bytes()[:-9] if name.startswith("torn") else b"plain")
    with pytest.raises(UsageError, match=str(path)) as caught:
        rows_of(path)
    assert what in f"{caught.value.what}\n{caught.value.cure}"
    assert type(caught.value) is UsageError
    assert caught.value.cure


def test_a_missing_file_lists_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "a\n1\n")
    with pytest.raises(UsageError, match=r"tain\.csv: no such file\n.*there is train\.csv"):
        rows_of(tmp_path / "tain.csv")
    with pytest.raises(UsageError, match="Is a directory"):
        rows_of(Path(f"{tmp_path}/sub.csv").parent, format="csv")


@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz"])
def test_pipes_and_devices_are_refused(tmp_path: Path, target: str, ending: str) -> None:
    """Also behind a link: they may block, or never end."""
    path = tmp_path / f"rows.{ending}"
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to(tmp_path / target)
    rows = open_file(path)
    for read in (
        lambda: list(rows),
        rows.fingerprint,
        lambda: corpus.fingerprint([path]),
        lambda: list(corpus.read_text(path)),
    ):
        with pytest.raises(UsageError, match="not a regular file"):
            read()


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("a\n1\n")
    (tmp_path / "rows.csv").symlink_to(tmp_path / "real")
    assert [row for _, row in open_file(tmp_path / "rows.csv")] == [{"a": "1"}]
    assert "".join(corpus.read_text(tmp_path / "rows.csv")) == "a\n1\n"


def test_wide_tables_below_the_limit_are_read(tmp_path: Path) -> None:
    names = [f"c{k}" for k in range(MAX_COLUMNS)]
    path = write(tmp_path, "wide.tsv", "\t".join(names) + "\n" + "\t".join("x" * MAX_COLUMNS))
    assert rows_of(path) == [dict.fromkeys(names, "x")]
    much = write(tmp_path, "much.tsv", "a\tb\n" + "\t" * 1_000_000 + "x")
    assert [row.what for _, row in open_file(much).read() if isinstance(row, RowError)] == [
        "1000001 fields under a header of 2"
    ]


def test_ragged_rows_keep_their_last_field(tmp_path: Path) -> None:
    path = write(tmp_path, "r.tsv", "a\tb\tc\tgold\n1\t2\t3\tx\n1\t2\ty\n1\t2\t3\t4\t5\tz\n1\tw\n")
    rows = [row for _, row in FileRows((path,), ReadOptions("tsv", min_fields=3)).read()]
    assert rows[:3] == [
        {"a": "1", "b": "2", "c": "3", "gold": "x"},
        {"a": "1", "b": "2", "c": "", "gold": "y"},
        {"a": "1", "b": "2", "c": "3", "gold": "z"},
    ]
    assert isinstance(rows[3], RowError)


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    one = open_file(write(tmp_path, "a.csv", "a\n1\n")).fingerprint()
    assert open_file(write(tmp_path, "b.csv", "a\n1\n")).fingerprint() == one
    assert open_file(write(tmp_path, "a.csv", "a\n2\n")).fingerprint() != one
    assert open_file(write(tmp_path, "c.tsv", "a\n1\n")).fingerprint() != one
    # The value that the first version computed.
    assert one == "09333ba0cda19e13b6660565aaa9ed00f3adc7b55c841b8495c7b0694b6bd677"


def test_a_list_is_read_across_windows(tmp_path: Path) -> None:
    rows = [{"k": k, "text": "é" * (k % 977), "deep": [{"x": "}]"}]} for k in range(6000)]
    path = write(tmp_path, "big.json", json.dumps(rows, ensure_ascii=False, indent=1))
    assert rows_of(path) == rows
    lines = [location.number for location, _ in read_rows(path)]
    assert lines == sorted(lines)
    assert path.read_text().split("\n")[lines[-1] - 1].strip() == "{"


PIECES = st.sampled_from([*'{}[]",:\\ \n\r\tab1', "\\u0000", "\\ud800", "é", "null"])


@given(st.binary(max_size=200) | st.lists(PIECES, max_size=40).map(lambda s: "".join(s).encode()))
def test_any_bytes_give_rows_or_a_usage_error(raw: bytes) -> None:
    for kind in range(len(OPTIONS)):
        check_rows(bytes([kind]) + raw)
    check_parquet(raw)


class EndlessPipe(io.RawIOBase):
    """A pipe that never ends; to read all of it is an error."""

    def __init__(self, start: bytes) -> None:
        self.start = start

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "everything was to be read"
        content = self.start[:size].ljust(size, b"\0")
        self.start = self.start[size:]
        return content


def test_parquet_from_an_endless_pipe_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="not a complete Parquet file"):
        next(read_parquet(EndlessPipe(b""), "standard input"))
    monkeypatch.setattr("finetune.data.readers.parquet._MAX_PIPE_BYTES", 1000)
    with pytest.raises(
        UsageError, match="more than 1,000 bytes of Parquet that cannot be searched"
    ):
        next(read_parquet(EndlessPipe(b"PAR1"), "standard input"))
