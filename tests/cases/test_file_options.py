"""How a file is written, said with options or in the recipe, and told when it is found."""

import pytest

from finetune.cli import main
from finetune.data import open_file, open_rows, read_rows, write_rows
from finetune.data.held_out import open_split
from finetune.recipe.loading import load_recipe, override_data
from finetune.recipe.schema import HELD_OUT, DataConfig
from task_formats import UsageError
from tests.support import jobs

PAIRS = [(f"das Auto Nr. {n} fährt, sagt er", ("gut", "schön")[n % 2]) for n in range(20)]
ROWS = [{"column_1": text, "column_2": label} for text, label in PAIRS]


def write(path, delimiter=",", encoding="utf-8", header="text,label\n"):
    quote = '"{}"' if delimiter == "," else "{}"
    lines = "".join(f"{quote.format(text)}{delimiter}{label}\n" for text, label in PAIRS)
    path.write_bytes((header.replace(",", delimiter) + lines).encode(encoding))
    return path


@pytest.fixture
def odd(tmp_path):
    """A file in cp1252 with ~ between its columns and without a header, and its options."""
    file = write(tmp_path / "odd.csv", "~", "cp1252", header="")
    return str(file), ["--delimiter", "~", "--encoding", "cp1252", "--no-header"]


def test_what_is_said_goes_from_new_to_the_recipe_and_to_training(odd, tmp_path, capsys, bases):
    file, options = odd
    target = tmp_path / "odd.yaml"
    assert main(["new", file, "-o", str(target), *options]) == 0
    out = capsys.readouterr().out
    assert "Found '~' between the columns, encoding cp1252, no header." in out
    recipe = load_recipe(target)
    assert recipe.task.columns == {"text": "column_1", "label": "column_2"}
    data = recipe.data
    assert (data.delimiter, data.encoding, data.header) == ("~", "cp1252", False)
    assert [row for _, row in open_rows(data, str(data.train))] == ROWS
    run = str(tmp_path / "run")
    command = ["train", "--task", str(target), "--base", str(bases("gpt2")), "-o", run]
    assert main([*command, "--epochs", "1", "--max-tokens", "48", "--precision", "fp32"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "'~' between the columns, encoding cp1252, no header" in told
    # Another file is read as the run's own, unless options say something else.
    (tmp_path / "plain.csv").write_text("column_1,column_2\nguten Tag,gut\n")
    plain = ["--delimiter", ",", "--encoding", "utf-8", "--header"]
    assert main(["evaluate", run, "--split", file]) == 0
    assert main(["evaluate", run, "--split", str(tmp_path / "plain.csv"), *plain]) == 0


def test_options_of_commands_that_read_rows(odd, tmp_path, capsys):
    file, options = odd
    recipe = (
        "task: {format: classification, columns: {text: column_1, label: column_2},"
        f" labels: [gut, schön]}}\ndata: {{train: {file}}}\n"
    )
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    assert main(["doctor", str(tmp_path / "r.yaml"), "--base", "tiny", *options]) == 0
    assert "20 examples ('~' between the columns, encoding cp1252, no header)" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert main(["preview", str(tmp_path / "r.yaml"), "--base", "tiny", *options]) == 0


def test_a_file_of_another_name_is_read_by_its_format(tmp_path):
    file = write(tmp_path / "rows.txt", "\t")
    with pytest.raises(UsageError, match=r"unknown kind of file '\.txt'\n.*--input-format"):
        open_file(file)
    command = ["new", str(file), "-o", str(tmp_path / "r.yaml"), "--input-format", "tsv"]
    assert main([*command, "--hold-out", "0.2"]) == 0
    recipe = load_recipe(tmp_path / "r.yaml")
    parts = (open_split(recipe.data, recipe.task.build(), s) for s in (recipe.data.train, HELD_OUT))
    assert [sum(1 for _ in part) for part in parts] == [16, 4]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.csv", ";")
    folder = DataConfig(path=str(tmp_path / "data"), delimiter="semicolon")
    assert [row["label"] for _, row in open_rows(folder, "train")] == [y for _, y in PAIRS]


def test_a_missing_header_is_found_where_its_values_repeat(tmp_path, capsys):
    file = write(tmp_path / "a.tsv", "\t", header="")
    assert main(["new", str(file), "-o", str(tmp_path / "a.yaml")]) == 0
    assert "Found no header" in capsys.readouterr().out
    assert load_recipe(tmp_path / "a.yaml").task.columns == {
        "text": "column_1",
        "label": "column_2",
    }
    # A header that occurs again in a file of joined files is one.
    twice = tmp_path / "b.tsv"
    twice.write_text("text\tlabel\n" + file.read_text() + "text\tlabel\n" + file.read_text())
    assert main(["new", str(twice), "-o", str(tmp_path / "b.yaml")]) == 0
    assert load_recipe(tmp_path / "b.yaml").data.header is None


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("delimiter", "tab", "\t"),
        ("delimiter", r"\t", "\t"),
        ("delimiter", "\t", "\t"),
        ("delimiter", "|", "|"),
        ("delimiter", ":", ":"),
        ("delimiter", "#", "#"),
        ("delimiter", "semicolon", ";"),
        ("encoding", "latin-1", "latin-1"),
        ("encoding", "437", "437"),
        ("header", "false", False),
    ],
)
def test_values(key, value, kept):
    data = override_data(DataConfig(), {f"data.{key}": value})
    assert getattr(data, key) == kept
    assert DataConfig(**data.model_dump()) == data


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("delimiter", "ab", "'ab' is not a character that can be between columns"),
        ("delimiter", '"', "is not a character"),
        ("encoding", "utf-9", "unknown encoding 'utf-9'"),
        ("encoding", "rot13", "unknown encoding 'rot13'"),
        ("format", "doc", "format must be"),
    ],
)
def test_wrong_values(key, value, message):
    with pytest.raises(UsageError, match=message):
        override_data(DataConfig(), {key: value})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "shift_jis", "utf-8-sig"])
def test_encodings_agree(tmp_path, encoding):
    rows = [("映画は良かった", "良い"), ("「退屈」", "悪い")] * 2_000
    text = "text,label\n" + "".join(f"{a},{b}\n" for a, b in rows)
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    given = None if encoding.startswith("utf") else encoding
    for name in (None, given, encoding):
        if name or given is None:
            found = [
                (row["text"], row["label"])
                for _, row in read_rows(tmp_path / "a.csv", encoding=name)
            ]
            assert found == rows
    (tmp_path / "a.tsv").write_bytes(
        text.replace(",", "\t").replace("「", '"').replace("」", '"').encode(encoding)
    )
    assert len(list(read_rows(tmp_path / "a.tsv", encoding=encoding))) == len(rows)


def test_a_byte_of_another_encoding_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"a\n" * 50_000 + b"\x81\n")
    with pytest.raises(UsageError, match=r"a\.csv: byte 100,006 is not cp1252\n.*--encoding"):
        list(read_rows(tmp_path / "a.csv", encoding="cp1252"))


def test_a_resumed_run_notices_another_way_to_read_the_file(bases, tmp_path):
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path / "data")
    with write_rows(tmp_path / "t.csv", ["text", "label"]) as sink:
        for row in jobs.rows("classification", 12):
            sink.write(row)
    recipe = jobs.change(recipe, "data", train=str(tmp_path / "t.csv"), evaluate=None)
    run = tmp_path / "run"
    jobs.stop_at(recipe, run, 2)
    with pytest.raises(UsageError, match="not the rows that the run began with"):
        jobs.train(jobs.change(recipe, "data", encoding="latin-1"), run, resume=True)
    jobs.train(recipe, run, resume=True)
