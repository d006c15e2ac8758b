"""CSV and TSV files as spreadsheets and pandas write them."""

import io
import sys

import pytest

from finetune.cli import main
from finetune.data import open_file, read_rows
from task_formats import RowError

TEXTS = [f"It was {('bad', 'good')[n % 2]}, number {n}." for n in range(20)]
ROWS = [{"review": text, "stars": str(n % 2)} for n, text in enumerate(TEXTS)]


def read(path, **options):
    return [dict(row) for _, row in read_rows(path, **options)]


def write(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "note"),
    [
        ("a.csv", ";", "utf-8-sig", "semicolons between the columns"),
        ("a.csv", "\t", "utf-8", "tabs between the columns"),
        ("a.csv", "|", "cp1252", "bars between the columns"),
        ("a.csv", ";", "utf-16", "semicolons between the columns, encoding utf-16"),
        ("a.tsv", ";", "utf-8", "semicolons between the columns"),
        ("a.tsv", "\t", "utf-16", "encoding utf-16"),
    ],
)
def test_delimiter_and_encoding_are_found(tmp_path, capsys, name, delimiter, encoding, note):
    lines = [delimiter.join(row.values()) for row in [{"": "review", "-": "stars"}, *ROWS]]
    path = write(tmp_path / name, "\n".join(lines) + "\n", encoding)
    assert read(path) == ROWS
    assert open_file(path).describe() == note
    assert main(["new", str(path), "-o", str(tmp_path / "r.yaml")]) == 0
    assert (f"Found {note}." in capsys.readouterr().out) == bool(note)


def test_commas_in_the_text_do_not_hide_other_delimiters_nor_pretend_to_be_one(tmp_path):
    assert read(write(tmp_path / "a.csv", "text;score\na, b, c;1,5\n")) == [
        {"text": "a, b, c", "score": "1,5"}
    ]
    assert read(write(tmp_path / "b.csv", "text\na; b\nc\n")) == [{"text": "a; b"}, {"text": "c"}]
    assert read(write(tmp_path / "c.csv", 'text\n"a; b"\n')) == [{"text": "a; b"}]
    assert read(write(tmp_path / "d.csv", 'text, label\n"a, b", yes\n')) == [
        {"text": "a, b", "label": "yes"}
    ]
    quoted = write(tmp_path / "e.csv", 'text, label\n"a", "say ""no"""\n')
    assert read(quoted) == [{"text": "a", "label": 'say "no"'}]


def test_a_pipe_is_read_like_a_file(monkeypatch):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    for raw, kind in (
        ("review;stars\n" + "".join(f"{r['review']};{r['stars']}\n" for r in ROWS), "csv"),
        ("review\tstars\n" + "".join(f'"{r["review"]}\n"\t{r["stars"]}\n' for r in ROWS), "tsv"),
    ):
        stream = io.BufferedReader(Pipe(raw.encode()))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        rows = [{**row, "review": row["review"].rstrip("\n")} for row in read("-", format=kind)]
        assert rows == ROWS


PANDAS = 'text\tlabel\n"She said ""hi"" and left"\tneg\nplain\tpos\n"first\nsecond"\tpos\n'
QUOTED = {
    "pandas": PANDAS,
    "pandas on Windows": PANDAS.replace("\n", "\r\n"),
    "everything quoted": '"text"\t"label"\n"She said ""hi"" and left"\t"neg"\n',
    "late": "text\tlabel\n" + "plain\tpos\n" * 20_000 + '"a\tb"\tneg\n',
}
UNQUOTED = {
    "a sentence in quotes": 'text\tlabel\n"Yes."\tpos\n',
    "inside": 'text\tlabel\nShe said "hi"\tpos\n"a ""b"" c"\tneg\n',
    "an open quote": 'text\tlabel\n"a ""b"" c"\tneg\n"Who is it?\tpos\n',
    "late": 'text\tlabel\n"a ""b"" c"\tneg\n' + "x\ty\n" * 20_000 + 'a "b\tpos\n',
}


@pytest.mark.parametrize("name", QUOTED)
def test_quotes_are_understood_in_a_consistently_quoted_tsv(tmp_path, name):
    path = write(tmp_path / "a.tsv", QUOTED[name])
    rows = read(path)
    if name == "late":
        assert rows[-1] == {"text": "a\tb", "label": "neg"}
    else:
        assert rows[0] == {"text": 'She said "hi" and left', "label": "neg"}
        assert all('"' not in row["label"] for row in rows)
    assert open_file(path).describe() == "quotes as in CSV"


@pytest.mark.parametrize("name", UNQUOTED)
def test_other_quotes_between_tabs_are_text(tmp_path, name):
    path = write(tmp_path / "a.tsv", UNQUOTED[name])
    lines = [line.split("\t") for line in UNQUOTED[name].splitlines()[1:]]
    assert [list(row.values()) for row in read(path)] == lines
    assert open_file(path).describe() == ""


def test_windows_1252_is_named_with_its_cure(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nschön,1\n", "cp1252")
    [error] = [row for _, row in open_file(path).read()]
    assert isinstance(error, RowError)
    assert error.where == f"{path}, line 2, byte 4"
    assert error.cure == (
        "In Windows-1252, as Excel saves CSV, it is 'ö'. "
        "Save the file as UTF-8, or read rows with --encoding cp1252."
    )


def test_spare_columns_of_a_spreadsheet_are_not_used(tmp_path, capsys):
    lines = "".join(f"{('ham', 'spam')[n % 2]},text number {n},,,\n" for n in range(20))
    path = write(tmp_path / "spam.csv", f"v1,v2,,,\n{lines}ham,a short row\nham,a,b,,\n")
    *_, short, long = read(path)
    assert short == {"v1": "ham", "v2": "a short row", **dict.fromkeys(SPARE, "")}
    assert long == {**short, "v2": "a", "Unnamed: 2": "b"}
    assert main(["new", str(path), "-o", str(tmp_path / "r.yaml")]) == 0
    assert capsys.readouterr().out.count("Columns without a name are not used") == 1


SPARE = ("Unnamed: 2", "Unnamed: 3", "Unnamed: 4")


def test_columns_that_are_given_are_believed(tmp_path, capsys):
    question = "How satisfied are you with our service today?"
    lines = "".join(f"text number {n},{('low', 'high')[n % 2]}\n" for n in range(20))
    path = write(tmp_path / "q.csv", f"{question},grade\n{lines}")
    command = ["new", str(path), "-o", str(tmp_path / "r.yaml")]
    assert main(command) == 2
    assert "name the columns with --text and --label" in capsys.readouterr().err
    assert main([*command, "--text", question, "--label", "grade"]) == 0
    assert question in (tmp_path / "r.yaml").read_text()


def test_a_column_name_with_braces_can_be_used(tmp_path):
    from finetune.recipe.loading import load_recipe

    rows = "".join(f"text number {n},{n % 2}\n" for n in range(20))
    path = write(tmp_path / "g.csv", f"text {{en}},label\n{rows}")
    assert main(["new", str(path), "-o", str(tmp_path / "r.yaml")]) == 0
    task = load_recipe(tmp_path / "r.yaml").task.build()
    assert task.example(read(path)[3], "x").fields == {"text": "text number 3"}
