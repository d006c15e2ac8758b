"""Predict finds rows in every layout that training reads: original files, folders, patterns."""

import gzip
import json
from pathlib import Path

import pytest

from finetune.data import FileRows
from finetune.data.inputs import open_inputs
from finetune.recipe.loading import load_recipe
from finetune.recipe.schema import DataConfig
from task_formats import UsageError

PAIR = {"sentence1": "It rains.", "sentence2": "The street is wet."}
NLI = {"premise": "It rains.", "hypothesis": "The street is wet."}
SNLI_HEADER = [
    "index", "captionID", "pairID", "sentence1_binary_parse", "sentence2_binary_parse",
    "sentence1_parse", "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label",
]  # fmt: skip
FILES = {
    ("rte", "test.tsv"): (
        'index\tsentence1\tsentence2\n0\tIt "rains.\tThe street is wet.\n',
        {"sentence1": 'It "rains.', "sentence2": "The street is wet."},
    ),
    ("rte", "mine.csv"): ("sentence1,sentence2\nIt rains.,The street is wet.\n", PAIR),
    ("mrpc", "msr_paraphrase_test.txt"): (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        "1\t7\t8\tIt rains.\tThe street is wet.\n",
        PAIR,
    ),
    ("mrpc", "test.tsv"): (
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tIt rains.\tThe street is wet.\n",
        PAIR,
    ),
    ("cola", "dev.tsv"): ("gj04\t1\t\tThe sailors rode.\n", {"sentence": "The sailors rode."}),
    ("cola", "test.tsv"): ("index\tsentence\n0\tBill sang.\n", {"sentence": "Bill sang."}),
    ("mnli", "test_matched.tsv"): (
        "index\tgenre\tsentence1\tsentence2\n0\tfiction\tIt rains.\tThe street is wet.\n",
        NLI,
    ),
    ("mnli", "mine.jsonl"): (json.dumps(NLI) + "\n", NLI),
    ("snli", "test.tsv"): (
        "\t".join(SNLI_HEADER)
        + "\n0\tc\tp\t(a)\t(b)\t(c)\t(d)\tIt rains.\tThe street is wet.\tneutral\tneutral\n",
        NLI,
    ),
    ("snli", "snli_1.0_test.jsonl"): (
        json.dumps({"gold_label": "neutral", **PAIR, "pairID": "4#1"}) + "\n",
        NLI,
    ),
    ("race", "12.txt"): (
        '{"id": "high12.txt", "article": "It rains.", "questions": ["Is it wet?"], '
        '"options": [["yes", "no", "maybe", "never"]], "answers": ["A"]}\n',
        {"article": "It rains.", "question": "Is it wet?"},
    ),
    ("arc", "ARC-Challenge-Test.jsonl"): (
        '{"id": "M1", "question": {"stem": "Is it wet?", "choices": '
        '[{"text": "yes", "label": "A"}, {"text": "no", "label": "B"}]}, "answerKey": "A"}\n',
        {"question": "Is it wet?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}},
    ),
}


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_of_the_data_set_or_with_its_columns_is_read(name, file, tmp_path):
    content, expected = FILES[name, file]
    (tmp_path / file).write_text(content)
    recipe = load_recipe(name)
    task = recipe.task.build()
    [rows] = open_inputs(recipe.data, task, [str(tmp_path / file)])
    [(_, row)] = rows
    assert {key: row[key] for key in expected} == expected
    assert task.without_labels().example(row, "0", labelled=False)


def demo_task():
    return load_recipe("demo").task.build()


def write(path: Path, count: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "premise,hypothesis\n" + "It rains.,It is wet.\n" * count
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def names(inputs) -> list[str]:
    return [Path(rows.files[0]).name for rows in inputs]


def test_a_folder_of_shards_and_a_pattern_are_read_in_natural_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "part-10.csv",
        "part-2.csv",
        "sub/part-1.csv.gz",
        ".hidden.csv",
        "part-3.csv.part",
    ):
        write(tmp_path / "parts" / name)
    (tmp_path / "parts" / "README.md").write_text("no rows")
    data = DataConfig()
    folder = open_inputs(data, demo_task(), ["parts"])
    assert names(folder) == ["part-2.csv", "part-10.csv", "part-1.csv.gz"]
    assert names(open_inputs(data, demo_task(), ["parts/*.csv"])) == ["part-2.csv", "part-10.csv"]
    assert names(open_inputs(data, demo_task(), ["parts/**/*.gz"])) == ["part-1.csv.gz"]
    several = [str(tmp_path / "parts" / name) for name in ("part-10.csv", "part-2.csv")]
    assert names(open_inputs(data, demo_task(), several)) == ["part-10.csv", "part-2.csv"]


def test_a_folder_of_the_data_set_holds_its_splits(tmp_path):
    recipe = load_recipe("mrpc")
    task = recipe.task.build()
    for name in ("dev.tsv", "test.tsv"):
        (tmp_path / name).write_text(FILES["mrpc", "test.tsv"][0])
    [rows] = open_inputs(recipe.data, task, [str(tmp_path)])
    assert names([rows]) == ["test.tsv"]
    [rows] = open_inputs(recipe.data, task, [str(tmp_path)], split="validation")
    assert names([rows]) == ["dev.tsv"]
    (tmp_path / "test.tsv").unlink()
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(UsageError, match="no file of a split 'test'"):
        open_inputs(recipe.data, task, [str(tmp_path)])


def test_a_folder_of_race_is_one_split_also_from_inside(tmp_path):
    recipe = load_recipe("race")
    passage, _ = FILES["race", "12.txt"]
    for name in ("test/high/2.txt", "test/high/10.txt", "test/middle/1.txt"):
        (tmp_path / "RACE" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "RACE" / name).write_text(passage)
    for folder, count in (("RACE", 3), ("RACE/test/high", 2)):
        [rows] = open_inputs(recipe.data, recipe.task.build(), [str(tmp_path / folder)])
        assert isinstance(rows, FileRows)
        assert len(list(rows)) == count
    assert names([rows]) == ["2.txt"]


def test_without_a_file_the_split_of_the_recipe_is_read():
    recipe = load_recipe("demo")
    task = recipe.task.build()
    assert names(open_inputs(recipe.data, task)) == ["test.tsv"]
    assert names(open_inputs(recipe.data, task, split=recipe.data.evaluate)) == ["dev.tsv"]
    with pytest.raises(UsageError, match=r"the recipe has no data\.predict") as caught:
        open_inputs(DataConfig(), task)
    assert "--split" in caught.value.cure


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("no/*.csv", None, "no file matches"),
        ("empty", None, "no files of rows"),
        ("one.csv", "test", "--split is a part of a folder"),
        ("one.txt", None, "unknown kind of file"),
    ],
)
def test_what_holds_no_rows_is_named(source, split, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "one.csv")
    with pytest.raises(UsageError, match=message):
        open_inputs(DataConfig(), demo_task(), [source], split=split)


def test_the_number_of_rows_is_known_without_reading_them(tmp_path):
    file = write(tmp_path / "rows.csv", 3000)
    [rows] = open_inputs(DataConfig(), demo_task(), [str(file)])
    assert rows.estimate_count() == 3000
    [rows] = open_inputs(DataConfig(), demo_task(), [str(write(tmp_path / "rows.csv.gz", 3))])
    assert rows.estimate_count() is None
