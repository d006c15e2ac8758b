"""Submissions to GLUE are written and checked as its server wants them."""

import math
import zipfile

import pytest

from finetune.recipe.loading import load_recipe
from finetune.submission.glue import (
    GLUE_FILES,
    FilePredictions,
    check_submission,
    fill_file,
    find_glue_task,
    map_labels,
    write_submission,
)
from task_formats import UsageError

SMALL = tuple(file._replace(rows=3) for file in GLUE_FILES)


def filled(files=SMALL):
    return [fill_file(file, "a test") for file in files]


def read(path, name):
    with zipfile.ZipFile(path) as archive:
        return archive.read(name).decode()


def problems_of(path, files=SMALL):
    checked, problems = check_submission(path, files)
    return [*problems, *(f"{file.name}: {text}" for file in checked for text in file.problems)]


def rewrite(path, **changes):
    """Replaces the text of files, by name without ending; None removes one."""
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name) for name in archive.namelist()}
    for name, text in changes.items():
        texts[f"{name}.tsv".replace("_", "-")] = text
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in texts.items():
            if text is not None:
                archive.writestr(name, text)


def test_the_same_predictions_give_the_same_archive(tmp_path):
    for name in ("one.zip", "two.zip"):
        write_submission(tmp_path / name, filled())
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_the_files_have_the_rows_of_the_test_sets():
    assert {file.name: file.rows for file in GLUE_FILES} == {
        "AX": 1104, "CoLA": 1063, "MNLI-m": 9796, "MNLI-mm": 9847, "MRPC": 1725, "QNLI": 5463,
        "QQP": 390965, "RTE": 3000, "SST-2": 1821, "STS-B": 1379, "WNLI": 146,
    }  # fmt: skip


def test_a_filled_submission_is_flat_complete_and_valid(tmp_path):
    write_submission(tmp_path / "one.zip", filled(GLUE_FILES))
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{file.name}.tsv" for file in GLUE_FILES)
    checked, problems = check_submission(tmp_path / "one.zip")
    assert problems == []
    assert [file.problems for file in checked] == [[]] * 11
    assert {file.name: file.rows for file in checked} == {f.name: f.rows for f in GLUE_FILES}
    assert read(tmp_path / "one.zip", "WNLI.tsv").startswith("index\tprediction\n0\t0\n1\t0\n")
    assert read(tmp_path / "one.zip", "STS-B.tsv").endswith("\n1378\t2.700\n")


@pytest.mark.parametrize("file", GLUE_FILES, ids=lambda file: file.name)
def test_shipped_recipes_have_the_labels_of_their_files(file):
    recipe = load_recipe(file.task)
    assert find_glue_task(recipe, "") == file.task
    words = map_labels(recipe.task.build(), file)
    assert sorted(words.values() if words else ()) == sorted(file.labels)
    if words and set(file.labels) == {"0", "1"}:
        # The raw label of the data is what the server wants.
        raw = recipe.task.build().labels.raw
        assert all(raw[word] == name for name, word in words.items())
    elif words:
        assert all(word == name for name, word in words.items())


def test_runs_of_other_tasks_are_refused():
    with pytest.raises(UsageError, match=r"not a run of a task of GLUE: data\.name is 'all'"):
        find_glue_task(load_recipe("race"), "runs/race")
    cola, stsb, mnli = (load_recipe(name).task.build() for name in ("cola", "stsb", "mnli"))
    files = {file.name: file for file in GLUE_FILES}
    with pytest.raises(UsageError, match="RTE has entailment, not_entailment"):
        map_labels(mnli, files["RTE"])
    with pytest.raises(UsageError, match="STS-B has scores"):
        map_labels(cola, files["STS-B"])
    with pytest.raises(UsageError, match="the run predicts scores"):
        map_labels(stsb, files["CoLA"])


WRONG = {
    "a missing file": ({"RTE": None}, ["RTE.tsv is missing"]),
    "a file too many": ({"notes": ""}, ["notes.tsv does not belong there"]),
    "another header": (
        {"RTE": "id\tlabel\n0\tentailment\n1\tentailment\n2\tentailment\n"},
        [r"RTE: the header must be index\tprediction (got 'id\\tlabel')"],
    ),
    "a label of another task": (
        {"CoLA": "index\tprediction\n0\t1\n1\tacceptable\n2\t0\n"},
        ["CoLA: line 3: 'acceptable' is not one of 0, 1"],
    ),
    "a very long line": (
        {"CoLA": f"index\tprediction\r\n0\t1\r\n1\t{'1' * 200_000}\r\n2\t0\r\n"},
        [f"CoLA: line 3: '{'1' * 59} is not one of 0, 1"],
    ),
    "rows that do not begin at 0": (
        {"WNLI": "index\tprediction\n1\t1\n2\t1\n3\t0\n"},
        [f"WNLI: line {n + 2}: expected {n}, a tab and a prediction" for n in range(3)],
    ),
    "too few rows": (
        {"QNLI": "index\tprediction\n0\tentailment\n"},
        ["QNLI: 1 rows instead of 3"],
    ),
    "scores out of range": (
        {"STS_B": "index\tprediction\n0\t5.001\n1\tnan\n2\thigh\n"},
        [
            "STS-B: line 2: 5.001 is not from 0 to 5",
            "STS-B: line 3: nan is not from 0 to 5",
            "STS-B: line 4: 'high' is not a number",
        ],
    ),
    "an empty file": (
        {"AX": ""},
        [r"AX: the header must be index\tprediction (got '')", "AX: 0 rows instead of 3"],
    ),
    "bytes that are no text": ({"QQP": b"\xff\xfe"}, ["QQP: not UTF-8: byte 0"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_check_finds(case, tmp_path):
    changes, expected = WRONG[case]
    write_submission(tmp_path / "glue.zip", filled())
    assert problems_of(tmp_path / "glue.zip") == []
    rewrite(tmp_path / "glue.zip", **changes)
    found = problems_of(tmp_path / "glue.zip")
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start), problem


def test_a_check_finds_folders_and_copies(tmp_path):
    path = tmp_path / "glue.zip"
    write_submission(path, filled())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("glue/RTE.tsv", "")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("RTE.tsv", "")
    found = problems_of(path)
    assert "glue/RTE.tsv: the archive must have no folders" in found
    assert "RTE.tsv is there 2 times" in found


def test_a_check_finds_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "glue.zip"
    write_submission(path, filled())
    with zipfile.ZipFile(path) as archive:
        places = {info.filename: info.header_offset for info in archive.infolist()}
    content = bytearray(path.read_bytes())
    middle = places["RTE.tsv"] + 30 + len("RTE.tsv") + 5
    content[middle : middle + 8] = bytes(8)
    # The flags and the method of the entry in the directory at the end of the archive.
    directory = content.rindex(b"CoLA.tsv") - 46
    content[directory + 8] |= 1
    directory = content.rindex(b"WNLI.tsv") - 46
    content[directory + 10] = 99
    path.write_bytes(content)
    found = sorted(problems_of(path))
    assert [text.partition(":")[0] for text in found] == ["CoLA", "RTE", "WNLI"]
    for text, reason in zip(found, ("encrypted", "damaged", "another way"), strict=True):
        assert reason in text


def test_many_wrong_lines_are_counted(tmp_path):
    path, file = tmp_path / "glue.zip", SMALL[0]._replace(rows=100)
    write_submission(path, [FilePredictions(file, ["?"] * 100, "")])
    found = problems_of(path, [file])
    assert len(found) == 6
    assert found[-1] == "CoLA: 95 more lines are wrong"


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "glue.zip").write_text("index\tprediction\n")
    with pytest.raises(UsageError, match="not a zip archive"):
        check_submission(tmp_path / "glue.zip")
    with pytest.raises(UsageError, match="No such file"):
        check_submission(tmp_path / "missing.zip")
    with pytest.raises(UsageError, match="this is a folder"):
        check_submission(tmp_path)


def test_the_fill_is_the_majority_of_the_training_rows(shared):
    """As far as GLUE's training files are complete here."""
    folder = shared / "data" / "glue"
    for name, column in {
        "CoLA": 1,
        "SST-2": -1,
        "MRPC": 0,
        "STS-B": -1,
        "RTE": -1,
        "WNLI": -1,
    }.items():
        lines = (folder / name / "train.tsv").read_text(encoding="utf-8-sig").splitlines()
        labels = [line.split("\t")[column] for line in lines[0 if name == "CoLA" else 1 :]]
        [file] = [file for file in GLUE_FILES if file.name == name]
        if file.labels:
            assert labels.count(file.majority) == max(map(labels.count, file.labels))
        else:
            mean = math.fsum(map(float, labels)) / len(labels)
            assert file.majority == f"{mean:.1f}00"
