"""Mistakes that people make: each ends in one message with a cure and exit code 2."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import finetune
from finetune.checkpointing.run_folder import RunFolder
from finetune.cli import main
from tests.support import families
from tests.support.jobs import recipe as job

ROWS = "text,label\n" + "".join(f"the cat sat {n},{('bad', 'good')[n % 2]}\n" for n in range(8))
RECIPE = """\
task:
  format: classification
  columns: {text: text, label: label}
  labels: [bad, good]
base: {path: BASE}
data: {train: rows.csv, evaluate: rows.csv}
train: {epochs: 1, batch_size: 4, max_tokens: 32, precision: fp32}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, one whose attention is its own, and a finished run; all read, none changed."""
    folder = tmp_path_factory.mktemp("made")
    base = families.make("gpt2", folder / "gpt2")
    own = families.make("openai-gpt", folder / "openai-gpt")
    run = folder / "run"
    finetune.train(job("entailment", base, folder / "job", train=8, held_out=4, epochs=1), run)
    return SimpleNamespace(base=base, own=own, run=run)


@pytest.fixture
def here(tmp_path, monkeypatch, made):
    """A folder with good rows and a good recipe, to spoil."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("BASE", str(made.base)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


class Mistake(NamedTuple):
    """What is typed, after what has been done to the folder, and what is answered."""

    words: str
    what: str
    cure: str
    spoil: Callable[[Path], object] = lambda here: None


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda here: (here / name).write_text(text)


def rows(text: str) -> Callable[[Path], object]:
    return write("rows.csv", text)


def recipe(old: str, new: str) -> Callable[[Path], object]:
    def replace(here: Path) -> None:
        path = here / "mine.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return replace


def folder(*names: str) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        for name in names:
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_text("{}")

    return make


TRAIN = "train --task mine.yaml"
RTE = "train --task rte --precision fp32 --base BASE --max-tokens 90"
MISTAKES = {
    # the name of the task
    "unknown task": Mistake("train --task rtee", "unknown task 'rtee'", "Did you mean 'rte'?"),
    "no such recipe file": Mistake("show yours.yaml", "yours.yaml", "ath"),
    "no such module": Mistake("train --task modul:mine", "no Python module 'modul'", "modul.py"),
    "no such task in it": Mistake(
        "train --task modul:mine", "no 'mine' in modul.py", "no task_formats.Task",
        write("modul.py", "x = 1\n"),
    ),
    "no task at all": Mistake(
        "show modul:x", "modul:x is of type int", "Tasks there", write("modul.py", "x = 1\n")
    ),
    # the recipe
    "misspelt key": Mistake(
        TRAIN, "mine.yaml, line 7: unknown key 'train.epoch'", "Did you mean 'train.epochs'?",
        recipe("epochs", "epoch"),
    ),
    "broken YAML": Mistake(TRAIN, "mine.yaml, line", "YAML", recipe("[bad, good]", "[bad, good")),
    "empty recipe": Mistake(TRAIN, "recipe is empty", "gptft new", write("mine.yaml", "")),
    "a key twice": Mistake(
        TRAIN, "the key 'data' a second time", "Keep one", recipe("train: {", "data: {}\ntrain: {")
    ),
    "a word for a number": Mistake(
        TRAIN, "train.epochs", "", recipe("epochs: 1", "epochs: many")
    ),
    "a seed below zero": Mistake(f"{TRAIN} --seed -1", "train.seed is the number -1", ""),
    "a seed of many bits": Mistake(
        f"{TRAIN} --seed 18446744073709551616", "should be less than 4294967296", ""
    ),
    "a number no computer counts to": Mistake(
        f"{TRAIN} --batch-size 99999999999999999999", "should be less than 2147483648", ""
    ),
    "more epochs than a life has": Mistake(f"{TRAIN} --epochs 1e300", "train.epochs", ""),
    "a number out of bounds": Mistake(f"{TRAIN} --batch-size 0", "train.batch_size", ""),
    "labels and a range": Mistake(
        TRAIN, "labels and range", "", recipe("labels:", "range: [0, 1]\n  labels:")
    ),
    "unknown format": Mistake(
        TRAIN, "'classify'", "Did you mean 'classification'?", recipe("classification", "classify")
    ),
    "unknown metric": Mistake(
        TRAIN, "acuracy", "accuracy", recipe("labels:", "metrics: [acuracy]\n  labels:")
    ),
    "a field without column": Mistake(
        TRAIN, "'hypothesis' is missing in", "premise", recipe("classification", "entailment")
    ),
    "a column nothing reads": Mistake(
        TRAIN, "txet", "Did you mean 'text'?", recipe("{text: text", "{txet: a, text: text")
    ),
    "one label": Mistake(TRAIN, "at least two", "labels:", recipe("[bad, good]", "[bad]")),
    "code in YAML": Mistake(
        TRAIN, "tag", "plain values", recipe("[bad, good]", "!!python/object/apply:os.system [x]")
    ),
    "a set without value": Mistake(
        f"{TRAIN} --set train.epochs", "not key=value", "train.epochs=5"
    ),
    "a set that is unknown": Mistake(
        f"{TRAIN} --set train.epoch=5", "train.epoch", "Did you mean 'train.epochs'?"
    ),
    "a flag and a set": Mistake(f"{TRAIN} --epochs 1 --set train.epochs=5", "given twice", "once"),
    # the data
    "no such file": Mistake(TRAIN, "rows.csv", "", lambda here: (here / "rows.csv").unlink()),
    "a folder for a file": Mistake(
        f"{TRAIN} --set data.train=.", "", "", lambda here: None
    ),
    "unknown kind of file": Mistake(
        TRAIN, "'.txt'", ".csv", recipe("train: rows.csv", "train: rows.txt")
    ),
    "empty file": Mistake(TRAIN, "rows.csv: the file is empty", "header", rows("")),
    "header only": Mistake(TRAIN, "no rows", "header", rows("text,label\n")),
    "wrong column": Mistake(
        TRAIN, "rows.csv, line 2 (", "Did you mean 'txt'?", rows(ROWS.replace("text,", "txt,"))
    ),
    "label outside the set": Mistake(
        TRAIN, "rows.csv, line 3 (", "Did you mean 'good'?", rows(ROWS.replace("1,good", "1,goood"))
    ),
    "no label": Mistake(
        TRAIN, "rows.csv, line 3 (", "predict", rows(ROWS.replace("1,good", "1,"))
    ),
    "empty text": Mistake(
        TRAIN, "rows.csv, line 4 (", "Fill it in", rows(ROWS.replace("the cat sat 2", " "))
    ),
    "a comma too many": Mistake(
        TRAIN, "rows.csv, line 4", "quotes", rows(ROWS.replace("sat 2", "sat, 2"))
    ),
    "not UTF-8": Mistake(
        TRAIN, "rows.csv, line 10", "",
        lambda here: (here / "rows.csv").write_bytes(ROWS.encode() + b"caf\xe9,good\n"),
    ),
    "swapped files": Mistake(
        TRAIN, "unlabelled.csv, line 2", "Known: text",
        lambda here: (
            recipe("train: rows.csv", "train: unlabelled.csv")(here),
            write("unlabelled.csv", "text\nthe cat\n")(here),
        ),
    ),
    "a score out of range": Mistake(
        TRAIN, "rows.csv, line 3 (", "range",
        lambda here: (
            recipe("labels: [bad, good]", "range: [0, 5]\n  metrics: [pearson]")(here),
            rows("text,label\none,2\ntwo,7\n")(here),
        ),
    ),
    "one column of choices": Mistake(
        TRAIN, "rows.csv, line 2 (", "ending1",
        lambda here: (
            recipe("classification", "multiple_choice")(here),
            recipe("{text: text", "{context: text, choices: text")(here),
        ),
    ),
    "nothing but bad rows": Mistake(
        f"{TRAIN} --on-bad-row skip", "none of 8 rows", "task.columns",
        rows(ROWS.replace("text,", "txt,")),
    ),
    "a misspelt data folder": Mistake(
        f"{RTE} --data gleu", "there is no folder 'gleu' here, and", "--data"
    ),
    "a misspelt base folder": Mistake(
        f"{TRAIN} --base runs/mien", "'runs/mien': there is no such folder here", "save_pretrained"
    ),
    "no such data folder": Mistake(f"{RTE} --data ./glue", "glue: no such folder", "--data"),
    "a data folder without the task": Mistake(
        f"{RTE} --data empty", "'train'", "'empty'", folder("empty/readme.txt")
    ),
    "fewer rows than a batch": Mistake(
        f"{TRAIN} --batch-size 100 --set train.incomplete_batch=drop", "8 rows", "--batch-size"
    ),
    # the base
    "no such base, offline": Mistake(
        f"{TRAIN} --base gpt2-gigantic", "cannot load the base 'gpt2-gigantic'", "--base tiny"
    ),
    "no such base folder": Mistake(
        f"{TRAIN} --base ./bases/mine", "no such folder", "save_pretrained"
    ),
    "a folder that is no base": Mistake(
        f"{TRAIN} --base empty", "cannot load the base", "", folder("empty/readme.txt")
    ),
    "more tokens than positions": Mistake(
        f"{TRAIN} --max-tokens 512", "512 is more than the base's 96 positions", "--max-tokens 96"
    ),
    "fewer tokens than the format needs": Mistake(f"{TRAIN} --max-tokens 2", "max_tokens 2", "3"),
    "a layout the base cannot take": Mistake(
        f"{TRAIN} --layout packed --base OWN", "'packed'", "separate"
    ),
    # the run
    "a folder of something else": Mistake(
        f"{TRAIN} -o thesis", "thesis", "empty directory", folder("thesis/chapter1.txt")
    ),
    "a folder with a run": Mistake(f"{TRAIN} -o RUN", "run", "--overwrite"),
    "resume and overwrite": Mistake(
        f"{TRAIN} -o RUN --resume --overwrite", "--resume and --overwrite exclude", "Use --resume"
    ),
    "resume nothing": Mistake("resume runs/none", "runs/none", "Check the path"),
    "evaluate nothing": Mistake("evaluate runs/none", "runs/none", "Check the path"),
    "evaluate an unknown split": Mistake(
        "evaluate RUN --split evalute", "'evalute'", "Did you mean 'evaluate'?"
    ),
    "no such device": Mistake("evaluate RUN --device cuda:7", "'cuda:7'", "cpu"),
    "predict on no file": Mistake("predict RUN none.csv", "none.csv", ""),
    "predict without a column": Mistake(
        "predict RUN rows.csv", "rows.csv, line 2: no column 'hypothesis'", "Known"
    ),
    "predict with an unknown ending": Mistake("predict RUN rows.xls", "'.xls'", ".csv"),
    "predict standard input of no format": Mistake(
        "predict RUN -", "standard input", "--input-format"
    ),
    "predict onto itself": Mistake(
        "predict RUN rows.csv -o rows.csv", "also the input", "another one"
    ),
    "predict into no folder": Mistake(
        "predict RUN pairs.jsonl -o none/out.csv", "none", "",
        write("pairs.jsonl", json.dumps({"premise": "a", "hypothesis": "b"}) + "\n"),
    ),
    "predict a tab into TSV": Mistake(
        "predict RUN pairs.jsonl -o out.tsv", "a tab", ".csv",
        write("pairs.jsonl", json.dumps({"premise": "a\tc", "hypothesis": "b"}) + "\n"),
    ),
    "predict nothing": Mistake(
        "predict RUN pairs.csv", "no rows", "rows", write("pairs.csv", "premise,hypothesis\n")
    ),
    # the file for a new recipe
    "new over a recipe": Mistake("new rows.csv -o mine.yaml", "already exists", "-o"),
    "new without names of columns": Mistake(
        "new rows.csv", "looks like data", "text,label", rows("1,the cat sat\n0,the dog ran\n")
    ),
    "new without labels": Mistake(
        "new rows.csv", "no label column", "--label", rows("a\nthe cat sat\nthe dog ran far\n")
    ),
    "new with no rows to score on": Mistake(
        "new rows.csv --evaluate none.csv", "none.csv", "there is"
    ),
    "new with other rows to score on": Mistake(
        "new rows.csv --evaluate dev.csv", "dev.csv: no column 'label'", "Did you mean 'labels'?",
        write("dev.csv", "text,labels\nthe cat sat,bad\n"),
    ),
    "new with other rows to score on beside it": Mistake(
        "new train.csv", "dev.csv: no column 'label'", "Did you mean 'labels'?",
        lambda here: [
            (here / "train.csv").write_text(ROWS),
            (here / "dev.csv").write_text("text,labels\nthe cat sat,bad\n"),
        ],
    ),
    "new with two ways to score": Mistake(
        "new rows.csv --evaluate rows.csv --hold-out 0.5", "exclude each other", "one of the two"
    ),
    "new of another kind": Mistake(
        "new rows.csv --format entailing", "'entailing'", "Did you mean 'entailment'?"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_message_with_a_cure_and_exit_code_2(name, here, made, capsys, monkeypatch):
    mistake = MISTAKES[name]
    mistake.spoil(here)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    places = {"RUN": str(made.run), "BASE": str(made.base), "OWN": str(made.own)}
    code = main([places.get(word, word) for word in mistake.words.split()])
    out, error = capsys.readouterr()
    message, *cure = error.splitlines()
    assert message.startswith("error: "), error
    assert mistake.what in message
    assert all(line.startswith("  ") for line in cure), error
    assert cure or "should be" in message or "give" in message, "there is no cure"
    assert error.count(str(here)) == 0, "files are named from the current folder"
    assert mistake.cure in "\n".join(cure)
    assert "Traceback" not in out + error
    assert code == 2


def test_a_folder_in_use_is_refused(here, capsys):
    with RunFolder.open(here / "runs" / "mine"):
        assert main(TRAIN.split()) == 2
    message, cure = capsys.readouterr().err.splitlines()
    assert "in use by process" in message
    assert "another directory" in cure


def test_the_recipe_that_the_mistakes_spoil_is_good(here, capsys):
    assert main(TRAIN.split()) == 0
    assert "gptft predict runs/mine" in capsys.readouterr().out
    assert len(MISTAKES) >= 30
