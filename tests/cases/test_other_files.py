"""Excel workbooks, Arrow files, compressed files, and files that hold several splits."""

import gzip
import json
import lzma
import sys

import datasets
import pandas
import pyarrow
import pytest
from pyarrow import ipc, parquet

from finetune.cli import main
from finetune.data import open_file, open_rows, read_rows, write_rows
from finetune.data.inputs import open_inputs
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import DataConfig, TaskConfig
from task_formats import UsageError
from tests.support.workbooks import write_workbook

ROWS = [{"text": f"it was the film number {n}", "label": n % 2} for n in range(40)]
TABLE = [["text", "label"], *map(list, map(dict.values, ROWS))]


def read(path, **options):
    return [dict(row) for _, row in read_rows(path, **options)]


def read_split(path, split, **options):
    return [dict(row) for _, row in open_rows(DataConfig(path=str(path), **options), split)]


# -- workbooks -------------------------------------------------------------------------------------


def test_a_workbook_is_read_like_a_csv_file(tmp_path, capsys):
    path = tmp_path / "a.xlsx"
    write_workbook(path, {"Data": [*TABLE, [None, None], ["last one", 1.5, "spare"]]})
    *rows, last = read(path)
    assert [{name: row[name] for name in ROWS[0]} for row in rows] == ROWS
    assert last == {"text": "last one", "label": 1.5, "Unnamed: 2": "spare"}
    assert str(list(read_rows(path))[-1][0]) == f"{path}, row 43"
    write_workbook(path, {"Data": TABLE})
    assert main(["new", str(path), "-o", str(tmp_path / "a.yaml")]) == 0
    assert "Found" not in capsys.readouterr().out
    assert load_recipe(tmp_path / "a.yaml").task.columns == {"text": "text", "label": "label"}
    assert read(path, header=False)[0] == {"column_1": "text", "column_2": "label"}


def test_sheets_are_splits(tmp_path):
    path = tmp_path / "a.xlsx"
    write_workbook(path, {"train": TABLE, "Tabelle2": TABLE[:4]})
    assert read(path) == ROWS
    assert open_file(path).describe() == "sheet 'train' of 2, the first"
    assert read_split(path, "Tabelle2") == ROWS[:3]
    with pytest.raises(UsageError, match="no sheet 'test'"):
        read_split(path, "test")
    write_workbook(path, {"notes": [["x"]], "train": TABLE, "dev": TABLE[:4]})
    assert main(["new", str(path), "-o", str(tmp_path / "a.yaml")]) == 0
    data = load_recipe(tmp_path / "a.yaml").data
    assert (data.path, data.train, data.evaluate) == (str(path), "train", "dev")


def test_what_is_no_workbook_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.xlsx"
    path.write_text("text,label\n")
    with pytest.raises(UsageError, match=r"a\.xlsx: not a workbook.*\nSave the sheet as CSV"):
        read(path)
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(UsageError, match=r"pip install 'gptft\[excel\]', or save the sheet as CSV"):
        read(path)


# -- Arrow and class names -------------------------------------------------------------------------

NAMES = ["dull", "fine"]
FEATURES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)}
)


@pytest.fixture
def saved(tmp_path):
    """A folder of save_to_disk with two splits."""
    splits = {
        name: datasets.Dataset.from_list(ROWS[:count], features=FEATURES)
        for name, count in (("train", 40), ("validation", 10))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "films")
    return tmp_path / "films"


def write_arrow(path, table, kind):
    if kind == "feather":
        from pyarrow import feather

        feather.write_feather(table, path)
    elif kind == "parquet":
        parquet.write_table(table, path)
    else:
        writer = ipc.new_stream if kind == "stream" else ipc.new_file
        with writer(str(path), table.schema) as sink:
            sink.write_table(table)


@pytest.mark.parametrize("kind", ["stream", "file", "feather", "parquet"])
def test_arrow_files_and_their_class_names(tmp_path, saved, kind):
    ending = {"feather": "feather", "parquet": "parquet"}.get(kind, "arrow")
    path = tmp_path / f"films.{ending}"
    table = datasets.load_from_disk(str(saved))["train"].data.table
    write_arrow(path, table, kind)
    assert read(path) == ROWS
    assert open_file(path).class_names() == {"label": NAMES}
    assert main(["new", str(path), "-o", str(tmp_path / "r.yaml")]) == 0
    assert load_recipe(tmp_path / "r.yaml").task.labels == {"0": "dull", "1": "fine"}
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == ROWS


def test_the_arrow_file_of_a_saved_data_set(saved):
    [path] = (saved / "train").glob("*.arrow")
    assert read(path) == ROWS


def test_a_torn_arrow_file_is_named(tmp_path):
    path = tmp_path / "a.arrow"
    write_arrow(path, pyarrow.Table.from_pylist(ROWS), "file")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match="not a complete Arrow file"):
        read(path)
    path.write_text("plain text\n")
    with pytest.raises(UsageError, match="not a complete Arrow file"):
        read(path)


def test_new_reads_a_folder_of_save_to_disk(saved, tmp_path):
    assert main(["new", str(saved), "-o", str(tmp_path / "r.yaml")]) == 0
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.task.labels == {"0": "dull", "1": "fine"}
    data = recipe.data
    assert (data.path, data.train, data.evaluate) == (str(saved), "train", "validation")
    assert [row for _, row in open_rows(data, data.evaluate)] == ROWS[:10]


def test_new_reads_a_folder_of_files(tmp_path):
    for name in ("train", "dev"):
        pandas.DataFrame(ROWS).to_csv(tmp_path / f"{name}.csv", index=False)
    assert main(["new", str(tmp_path), "-o", str(tmp_path / "r.yaml")]) == 0
    data = load_recipe(tmp_path / "r.yaml").data
    assert (data.train, data.evaluate) == ("train", "validation")
    assert len(list(open_rows(data, data.evaluate))) == 40


# -- compressed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("packing", [gzip, lzma])
def test_every_reader_reads_compressed_files(tmp_path, ending, packing):
    path = tmp_path / f"a.{ending}"
    with write_rows(path, list(ROWS[0])) as sink:
        for row in ROWS:
            sink.write(row)
    packed = tmp_path / f"a.{ending}.{'gz' if packing is gzip else 'xz'}"
    packed.write_bytes(packing.compress(path.read_bytes()))
    assert read(packed) == read(path)
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(UsageError, match=rf"{packed.name}: (cannot be read|not a complete)"):
        read(packed)


@pytest.mark.parametrize("ending", ["arrow", "xlsx", "csv.xz"])
def test_files_that_are_only_read_are_not_written(tmp_path, ending):
    with (
        pytest.raises(UsageError, match="read, not written"),
        write_rows(tmp_path / f"a.{ending}", ["a"]),
    ):
        pass


# -- splits in one file ----------------------------------------------------------------------------

SPLITS = {
    "objects": lambda rows: rows,
    "lists": lambda rows: [[row["text"], row["label"]] for row in rows],
    "columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
}


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("name", ["val", "dev", "validation"])
def test_splits_in_one_json_file(tmp_path, kind, name, capsys):
    path, write = tmp_path / "data.json", SPLITS[kind]
    splits = {name: ROWS[:6], "train": ROWS, "test": ROWS[:3]}
    path.write_text(json.dumps({split: write(rows) for split, rows in splits.items()}))
    names = ["column_1", "column_2"] if kind == "lists" else ["text", "label"]
    for split, rows in {**splits, "validation": ROWS[:6]}.items():
        found = [[row[key] for key in names] for row in read_split(path, split)]
        assert found == [list(row.values()) for row in rows]
    with pytest.raises(UsageError, match=rf"holds splits: {name}, train, test\n.*--split NAME"):
        read(path)
    with pytest.raises(UsageError, match=r"no split 'tset'\n.*test"):
        read_split(path, "tset")
    assert main(["new", str(path), "-o", str(tmp_path / "r.yaml")]) == 0
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.task.columns == {"text": names[0], "label": names[1]}
    data = recipe.data
    assert (data.path, data.train, data.evaluate) == (str(path), "train", name)


def test_a_split_of_a_file_is_predicted(tmp_path):
    task = TaskConfig(
        format="classification", columns={"text": "text", "label": "label"}, labels=("0", "1")
    ).build()
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:3]}))
    [rows] = open_inputs(DataConfig(), task, [str(path)], split="test")
    assert [row for _, row in rows] == ROWS[:3]
    write_workbook(tmp_path / "a.xlsx", {"train": TABLE, "test": TABLE[:4]})
    [rows] = open_inputs(DataConfig(), task, [str(tmp_path / "a.xlsx")], split="test")
    assert [row for _, row in rows] == ROWS[:3]


def test_fingerprints_of_splits_differ(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:3]}))
    data = DataConfig(path=str(path))
    assert open_rows(data, "train").fingerprint() != open_rows(data, "test").fingerprint()


def test_data_path_is_no_file_of_one_split(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(UsageError, match="a file of one split"):
        read_split(tmp_path / "a.csv", "train")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    with pytest.raises(UsageError, match="it holds no splits"):
        read_split(tmp_path / "a.json", "train")


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["data", "rows", "examples"])
def test_rows_under_a_key(tmp_path, key):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.0", key: ROWS}, indent=1))
    assert read(path) == ROWS


def test_columns_of_lists_and_rows_of_lists(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))
    assert read(path) == ROWS
    path.write_text(json.dumps(TABLE[1:], indent=2))
    assert read(path) == [{"column_1": text, "column_2": label} for text, label in TABLE[1:]]
    # Objects one after another are rows, whatever they hold.
    rows = [{"tokens": ["a", "b"], "tags": ["x", "y"]}, {"questions": [{"q": 1}]}] * 2
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read(path) == rows


def test_a_table_may_be_longer_than_a_row(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"text": f"{n} " * 300, "label": n % 2} for n in range(8_000)]
    path.write_text(json.dumps({"data": rows}))
    assert path.stat().st_size > 2**23
    assert read(path) == rows
