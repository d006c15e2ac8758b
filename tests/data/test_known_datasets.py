"""Local folders of data sets: all rows, the hub's columns, and messages for missing files."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from finetune.data import open_rows
from finetune.recipe.schema import DataConfig
from task_formats import UsageError

# Folder and configuration to the rows of each split, as the data card counts them.
ROWS = {
    ("glue/RTE", "rte"): {"train": 2490, "validation": 277, "test": 3000},
    ("glue/MRPC", "mrpc"): {"train": 3668, "validation": 408, "test": 1725, "test.tsv": 1725},
    ("glue/CoLA", "cola"): {"train": 8551, "validation": 1043, "test": 1063},
    ("glue/STS-B", "stsb"): {"train": 5749, "validation": 1500, "test": 1379},
    ("glue/SST-2", "sst2"): {"train": 67349, "validation": 872, "test": 1821},
    ("glue/WNLI", "wnli"): {"train": 635, "validation": 71, "test": 146},
    ("glue/QNLI", "qnli"): {"train": 5000, "validation": 5463},
    ("glue/QQP", "qqp"): {"train": 5000, "validation": 1000},
    ("glue/MNLI", "mnli"): {
        "train": 4600,
        "validation_matched": 1000,
        "validation_mismatched": 1000,
    },
    ("glue/MNLI", "mnli_matched"): {"validation": 1000},
    ("glue/diagnostic", "ax"): {"test": 1104},
    ("snli", "plain_text"): {"train": 3072, "validation": 1000},
    ("race", "all"): {"train": 768, "validation": 369, "test": 375},
    ("race", "middle"): {"train": 422, "validation": 195, "test": 204},
    ("race", "high"): {"train": 346, "validation": 174, "test": 171},
    ("copa", "copa"): {"train": 400, "validation": 100},
    ("arc", "ARC-Challenge"): {"validation": 294, "test": 1150},
}

LABELS = {
    ("rte", "train"): {"entailment": 1249, "not_entailment": 1241},
    ("mrpc", "train"): {"1": 2474, "0": 1194},
    ("mrpc", "test"): {"1": 1147, "0": 578},
    ("cola", "train"): {"1": 6023, "0": 2528},
    ("sst2", "train"): {"1": 37569, "0": 29780},
    ("qnli", "train"): {"not_entailment": 2521, "entailment": 2479},
    ("qqp", "train"): {"0": 3150, "1": 1850},
    ("mnli", "validation_matched"): {"contradiction": 349, "entailment": 333, "neutral": 318},
    ("mnli", "validation_mismatched"): {"contradiction": 334, "entailment": 350, "neutral": 316},
    ("plain_text", "validation"): {"entailment": 347, "contradiction": 341, "neutral": 312},
    ("copa", "train"): {0: 195, 1: 205},
}

COLUMNS = {
    "cola": {"sentence"},
    "sst2": {"sentence"},
    "qqp": {"question1", "question2"},
    "qnli": {"question", "sentence"},
    **{name: {"sentence1", "sentence2"} for name in ("rte", "wnli", "mrpc", "stsb")},
    **{name: {"premise", "hypothesis"} for name in ("mnli", "mnli_matched", "ax", "plain_text")},
    **{name: {"article", "question", "options", "answer"} for name in ("all", "middle", "high")},
    "copa": {"premise", "choice1", "choice2", "question", "label", "idx"},
    "ARC-Challenge": {"id", "question", "choices", "answerKey"},
}


def read(folder: Path, name: str | None, split: str) -> list[dict[str, Any]]:
    return [dict(row) for _, row in open_rows(DataConfig(path=str(folder), name=name), split)]


@pytest.mark.parametrize(("home", "name"), ROWS)
def test_every_row_is_read(shared: Path, home: str, name: str) -> None:
    for split, count in ROWS[home, name].items():
        rows = read(shared / "data", name, split)
        assert len(rows) == count
        assert set(map(frozenset, rows)) == {frozenset(rows[0])}
        assert COLUMNS[name] <= set(rows[0])
        if (name, split) in LABELS:
            assert Counter(row["label"] for row in rows) == LABELS[name, split]
        assert not any("\ufeff" in column for column in rows[0])


@pytest.mark.parametrize(("home", "name"), ROWS)
def test_a_collection_equals_the_folder_of_the_data_set(shared: Path, home: str, name: str) -> None:
    split = "validation" if "validation" in ROWS[home, name] else next(iter(ROWS[home, name]))
    found = [
        open_rows(DataConfig(path=str(shared / "data" / below), name=name), split)
        for below in (".", Path(home).parent, home)
    ]
    assert len({rows.fingerprint() for rows in found}) == 1
    assert len({rows.origin for rows in found}) == 1


def test_unusual_rows(shared: Path) -> None:
    data = shared / "data"
    rte = read(data, "rte", "train")
    assert rte[2164]["sentence1"].startswith('"')
    assert rte[2164]["idx"] == "2164"
    assert any(row["hypothesis"] == "n/a" for row in read(data, "mnli", "train"))
    assert sum(row["mark"] == " " for row in read(data, "cola", "validation")) == 1
    assert all(row["sentence"].endswith(" ") for row in read(data, "sst2", "train"))
    mrpc = read(data, "mrpc", "train")
    assert sum(any(str(v).startswith('"') for v in row.values()) for row in mrpc) == 455
    pairs = [[row["sentence1"], row["sentence2"]] for row in read(data, "mrpc", "test")]
    unlabelled = read(data, "mrpc", "test.tsv")
    assert pairs == [[row["sentence1"], row["sentence2"]] for row in unlabelled]
    assert "label" not in unlabelled[0]
    stsb = [float(row["label"]) for row in read(data, "stsb", "train")]
    assert (min(stsb), max(stsb), round(sum(stsb) / len(stsb), 2)) == (0, 5, 2.70)
    choices = Counter(len(row["choices"]["text"]) for row in read(data, "ARC-Challenge", "test"))
    assert choices == {4: 1144, 3: 3, 5: 3}


def test_race_rows_are_questions_in_order(shared: Path) -> None:
    rows = read(shared / "data", "middle", "train")
    numbers = [int(row["example_id"].removeprefix("middle").removesuffix(".txt")) for row in rows]
    assert numbers == sorted(numbers)
    path = shared / "data" / "race" / "train" / "middle" / f"{numbers[0]}.txt"
    passage = json.loads(path.read_text(encoding="utf-8"))
    found = [row["question"] for row in rows if row["example_id"] == passage["id"]]
    assert found == passage["questions"]
    expected = passage["options"][0], passage["answers"][0]
    assert (rows[0]["options"], rows[0]["answer"]) == expected


def write(folder: Path, files: Mapping[str, str | Sequence[Any]]) -> None:
    """Writes texts, or lists of values as JSON lines."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        path.write_text(text, encoding="utf-8")


def test_story_cloze(tmp_path: Path) -> None:
    story = (
        "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
        '{},"One, two.",b,c,d,e,"f ""g""",2\n'
    )
    names = {
        "v16": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
        "t16": "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
        "v18": "cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv",
    }
    write(tmp_path, {name: story.format(story_id) for story_id, name in names.items()})
    assert read(tmp_path, "2016", "validation") == [
        {"story_id": "v16", "input_sentence_1": "One, two.", "input_sentence_2": "b"}
        | {"input_sentence_3": "c", "input_sentence_4": "d", "sentence_quiz1": "e"}
        | {"sentence_quiz2": 'f "g"', "answer_right_ending": "2"}
    ]
    assert read(tmp_path, "2016", "test")[0]["story_id"] == "t16"
    assert read(tmp_path, "2018", "validation")[0]["story_id"] == "v18"
    with pytest.raises(UsageError, match=r"several files for one split: .*2016.*2018"):
        read(tmp_path, "storycloze", "validation")


def test_scitail_and_original_snli(tmp_path: Path) -> None:
    rows = 'A.\tB.\tentails\nC "d.\tE.\tneutral\n'
    write(tmp_path, {"SciTailV1.1/tsv_format/scitail_1.0_dev.tsv": rows})
    original = {"gold_label": "-", "sentence1": "A", "sentence2": "B"}
    write(tmp_path, {"snli_1.0/snli_1.0_test.jsonl": [original]})
    assert read(tmp_path, "tsv_format", "validation") == [
        {"premise": "A.", "hypothesis": "B.", "label": "entails"},
        {"premise": 'C "d.', "hypothesis": "E.", "label": "neutral"},
    ]
    expected = {"label": "-", "premise": "A", "hypothesis": "B"}
    assert read(tmp_path, "plain_text", "test") == [expected]


def test_arc_files_get_the_columns_of_the_hub(tmp_path: Path) -> None:
    """Rows that have them already stay as they are."""
    hub = {"question": "Q?", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "A"}
    question = {"stem": "Q?", "choices": [{"text": "x", "label": "A"}]}
    local = {"question": question, "answerKey": "A"}
    write(tmp_path, {"ARC-Easy/ARC-Easy-Train.jsonl": [hub, local]})
    assert read(tmp_path, "ARC-Easy", "train") == [hub, hub]


def test_a_bad_race_file_is_named(tmp_path: Path) -> None:
    passage = {"id": "1", "article": "x", "questions": ["q"], "options": [["a", "b"]]}
    write(tmp_path, {"race/test/high/1.txt": [{**passage, "answers": []}]})
    with pytest.raises(UsageError, match=r"high/1\.txt: not a passage of RACE: .*\nA RACE file"):
        read(tmp_path, "all", "test")
    good = {**passage, "answers": ["A"]}
    write(tmp_path, {"race/test/high/1.txt": [good], "race/test/high/2.txt": '{"article": "x"'})
    rows = list(open_rows(DataConfig(path=str(tmp_path), name="all"), "test").read())
    assert [isinstance(row, UsageError) for _, row in rows] == [False, True]
    assert str(rows[0][0]).endswith("1.txt, question 1")


@pytest.mark.parametrize(
    "name", ["train.csv", "training.csv", "TRAIN.csv", "data/train.csv", "rte/train.csv"]
)
def test_a_plain_file_named_after_the_split(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: "sentence1,label\na,entailment\n"})
    assert read(tmp_path, "rte", "train") == [{"sentence1": "a", "label": "entailment"}]


@pytest.mark.parametrize("word", ["validation", "dev", "val", "valid"])
@pytest.mark.parametrize("split", ["validation", "validation_hard"])
def test_words_for_validation(tmp_path: Path, word: str, split: str) -> None:
    write(tmp_path, {f"{split.replace('validation', word)}.jsonl": [{"a": 1}]})
    assert read(tmp_path, None, split) == [{"a": 1}]


def test_another_configuration_of_the_same_folder(shared: Path) -> None:
    assert len(read(shared / "data" / "glue", "mnli", "ax/test")) == 1104


def test_shards_are_one_split(tmp_path: Path) -> None:
    (tmp_path / "rte").mkdir()
    for k in range(3):
        table = pyarrow.Table.from_pylist([{"k": 2 * k}, {"k": 2 * k + 1}])
        parquet.write_table(table, tmp_path / "rte" / f"validation-0000{k}-of-00003.parquet")
    rows = open_rows(DataConfig(path=str(tmp_path), name="rte"), "validation")
    assert [row["k"] for _, row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows.origin.endswith("and 2 more")


@pytest.mark.parametrize(
    ("folder", "name", "split", "message"),
    [
        ("glue", "rte", "test", r"no file of a split 'test' of rte\nIn '.*RTE' there is train.tsv"),
        ("glue", "mrpc", "train", r"no file of a split 'train' of mrpc\nIn '.*glue' there is RTE/"),
        ("glue/RTE", "mrpc", "train", r"holds GLUE's RTE, and the recipe reads GLUE's MRPC\nGive"),
        ("own", None, "train", r"several files for one split: train\.csv, train\.tsv"),
        ("own", None, "../glue/RTE/train", "no file of a split 'train' of ../glue/RTE"),
        ("glue/RTE", "rte", "ax/train", "no file of a split 'train' of ax"),
        ("glue", "rte", "ax/train", "no file of a split 'train' of ax"),
        ("own/train.csv", None, "train", "a file of one split, and data.path"),
        ("nowhere/at/all", None, "train", "no such folder"),
    ],
)
def test_a_missing_split_is_named(
    tmp_path: Path, folder: str, name: str | None, split: str, message: str
) -> None:
    rte = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"
    write(tmp_path, {"glue/RTE/train.tsv": rte, "own/train.csv": "a\n1", "own/train.tsv": "a\n1"})
    with pytest.raises(UsageError, match=message):
        read(tmp_path / folder, name, split)


def test_a_split_can_be_a_file(tmp_path: Path) -> None:
    """One of several in the folder, or without a folder any file."""
    write(tmp_path, {"train.csv": "a\n1\n", "train.tsv": "a\n2\n"})
    assert read(tmp_path, None, "train.tsv") == [{"a": "2"}]
    assert [row for _, row in open_rows(DataConfig(), str(tmp_path / "train.csv"))] == [{"a": "1"}]
    with pytest.raises(UsageError, match=r"no such file\n.*there is train\.csv"):
        open_rows(DataConfig(), str(tmp_path / "tain.csv")).fingerprint()
    with pytest.raises(UsageError, match="unknown kind of file"):
        open_rows(DataConfig(), "train")
