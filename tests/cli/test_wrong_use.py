"""Wrong use of every command: one message, a cure, exit code 2 and no traceback."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest

import finetune
from finetune.checkpointing.run_folder import RunFolder
from finetune.cli import main
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
PAIR = {"premise": "a", "hypothesis": "b"}
FILES = {
    "rows.csv": ROWS,
    "mine.yaml": RECIPE,
    "empty.yaml": "",
    "modul.py": "x = 1\n",
    "thesis/chapter1.txt": "",
    "pairs.jsonl": json.dumps(PAIR),
    "pairs.csv": "premise,hypothesis\n",
    "unnamed.csv": "1,the cat sat\n0,the dog ran\n",
    "unlabelled.csv": "a\nthe cat sat\nthe dog ran far\n",
    "dev.csv": "text,labels\nthe cat sat,bad\n",
}
TRAIN = "train --task mine.yaml"
RTE = "train --task rte --precision fp32 --base BASE --max-tokens 90"


@pytest.fixture(scope="module")
def made(tmp_path_factory, bases):
    """Two bases, the second with its own attention, and a finished run; to be read only."""
    home = tmp_path_factory.mktemp("made")
    recipe = job("entailment", bases("gpt2"), home / "job", train=8, held_out=4, epochs=1)
    finetune.train(recipe, home / "run")
    return SimpleNamespace(base=bases("gpt2"), own=bases("openai-gpt"), run=home / "run")


@pytest.fixture
def folder(tmp_path, monkeypatch, made):
    """The current folder, with FILES in it."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("BASE", str(made.base)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path


@pytest.fixture
def refuses(folder, made, capsys):
    """Runs a command and checks that it is refused in the right form."""

    def check(words, what, cure=""):
        for name, place in {"RUN": made.run, "BASE": made.base, "OWN": made.own}.items():
            words = words.replace(name, str(place))
        code = main(words.split(" "))
        out, error = capsys.readouterr()
        message, *cures = error.splitlines()
        assert message.startswith("error: "), error
        assert what in message
        assert cure in "\n".join(cures)
        assert all(line.startswith("  ") for line in cures), error
        assert cures or re.search("must be|should be|give", message), "there is no cure"
        assert str(folder) not in error, "files are named from the current folder"
        assert "Traceback" not in out + error
        assert code == 2

    return check


@pytest.mark.parametrize(
    ("old", "new", "what", "cure"),
    [
        ("epochs", "epoch", "mine.yaml, line 7: unknown key 'train.epoch'", "'train.epochs'?"),
        ("[bad, good]", "[bad, good", "mine.yaml, line", "YAML"),
        ("train: {", "data: {}\ntrain: {", "'data'", "each key once"),
        ("classification", "classify", "'classify'", "Did you mean 'classification'?"),
        ("classification", "entailment", "'hypothesis' is missing in", "premise"),
        ("[bad, good]", "!!python/object/apply:os.system [x]", "tag", "no tags"),
    ],
)
def test_wrong_recipes(refuses, folder, old, new, what, cure):
    text = (folder / "mine.yaml").read_text()
    (folder / "mine.yaml").write_text(text.replace(old, new))
    refuses(TRAIN, what, cure)


SCORES = {"labels: [bad, good]": "range: [0, 5]\n  metrics: [pearson]"}
CHOICES = {"classification": "multiple_choice", "{text: text": "{context: text, choices: text"}


@pytest.mark.parametrize(
    ("rows", "what", "cure", "recipe"),
    [
        ("", "rows.csv: the file is empty", "header", {}),
        (ROWS.replace("text,", "txt,"), "rows.csv, line 2: ", "Did you mean 'txt'?", {}),
        (ROWS.replace("1,good", "1,goood"), "rows.csv, line 3: ", "Did you mean 'good'?", {}),
        (ROWS.replace("the cat sat 2", " "), "rows.csv, line 4: ", "Fill it in", {}),
        ("text,label\none,2\ntwo,7\n", "rows.csv, line 3: ", "range", SCORES),
        (ROWS, "rows.csv, line 2: ", "ending1", CHOICES),
    ],
)
def test_wrong_rows(refuses, folder, rows, what, cure, recipe):
    text = (folder / "mine.yaml").read_text()
    for old, new in recipe.items():
        text = text.replace(old, new)
    (folder / "mine.yaml").write_text(text)
    (folder / "rows.csv").write_text(rows, errors="surrogateescape")
    refuses(TRAIN, what, cure)


@pytest.mark.parametrize(
    ("words", "what", "cure"),
    [
        # The command line
        ("trian", "no such command 'trian'. Did you mean 'train'", "gptft --help"),
        ("train --task rte --epoch 3", "--epoch", "gptft train --help"),
        ("train --task rte --epochs x", "'--epochs'", "gptft train --help"),
        ("train --task rte --set train.epochs=1 word", "argument(s) (word)", "gptft train"),
        ("train --task rte word", "extra argument", "gptft train --help"),
        ("train", "--task", "gptft train --help"),
        ("show", "TASK", "gptft show --help"),
        ("train --task rte --layout flat", "'--layout'", "gptft train --help"),
        ("train --task rte --num-processes 0", "--num-processes", "gptft train --help"),
        # The task
        ("train --task rtee", "unknown task 'rtee'", "Did you mean 'rte'?"),
        ("train --task empty.yaml", "must contain a mapping", "gptft new"),
        ("show yours.yaml", "yours.yaml", "ath"),
        ("train --task moduls:mine", "No module named 'moduls'", "moduls.py"),
        ("train --task modul:mine", "no task 'mine' in module 'modul'", "no task_formats.Task"),
        ("show modul:x", "no task 'x' in module", "no task_formats.Task"),
        # Values
        (f"{TRAIN} --seed -1", "train.seed", ""),
        (f"{TRAIN} --set train.epochs", "not key=value", "train.epochs=5"),
        (f"{TRAIN} --set train.epoch=5", "train.epoch", "Did you mean 'train.epochs'?"),
        (f"{TRAIN} --epochs 1 --set train.epochs=5", "given twice", "once"),
        # The data
        (f"{TRAIN} --set data.train=none.csv", "none.csv", ""),
        (f"{TRAIN} --set data.train=.", "", ""),
        (f"{TRAIN} --on-bad-row skip --set data.train=dev.csv", "none of 1 row", "task.columns"),
        (f"{RTE} --data gleu", "there is no folder 'gleu' here, and", "--data"),
        # The base
        (f"{TRAIN} --base gpt2-gigantic", "cannot load the base 'gpt2-gigantic'", "--base tiny"),
        (f"{TRAIN} --base runs/mien", "'runs/mien': no such folder", "save_pre"),
        (f"{TRAIN} --base ", "base.path is empty", "Give the option a value"),
        (f"{TRAIN} --max-tokens 512", "more than the base's 96 positions", "--max-tokens 96"),
        (f"{TRAIN} --layout packed --base OWN", "'packed'", "separate"),
        # The output directory
        (f"{TRAIN} -o thesis", "thesis", "empty directory"),
        (f"{TRAIN} -o RUN", "run", "--overwrite"),
        (f"{TRAIN} -o RUN --resume --overwrite", "--resume and --overwrite exclude", "--resume"),
        ("resume runs/none", "runs/none", "Check the path"),
        # A finished run
        ("evaluate RUN --split evalute", "'evalute'", "Did you mean 'evaluate'?"),
        ("evaluate RUN --device cuda:7", "'cuda:7'", "cpu"),
        ("predict RUN none.csv", "none.csv", ""),
        ("predict RUN rows.csv", "no column 'hypothesis'", "Known"),
        ("predict RUN rows.doc", "'.doc'", ".csv"),
        ("predict RUN -", "standard input", "--input-format"),
        ("predict RUN rows.csv -o rows.csv", "also the input", "another one"),
        ("predict RUN pairs.jsonl -o none/out.csv", "none", ""),
        ("predict RUN pairs.jsonl -o out.xlsx", "read, not written", ".csv"),
        ("predict RUN pairs.csv", "no rows", "rows"),
        # A new recipe
        ("new rows.csv -o mine.yaml", "mine.yaml already exists", "-o"),
        ("new unnamed.csv", "looks like data", "--no-header"),
        ("new unlabelled.csv", "no label column", "--label"),
        ("new rows.csv --evaluate none.csv", "'none.csv' does not exist", ""),
        ("new rows.csv --evaluate dev.csv --hold-out 0.5", "exclude each other", "Give one"),
        ("schema -o mine.yaml", "mine.yaml already exists", "-o"),
        # Pre-training
        ("pretrain --track wandb tinny", "unknown plan 'tinny'", ""),
        ("pretrain tiny", "no text files", "--corpus FOLDER"),
        ("pretrain tiny --set train.lr=1", "unknown key 'train.lr'", ""),
        ("pretrain tiny --corpus ", "corpus.train is empty", ""),
        ("pretrain tiny --from ", "base is empty", ""),
        # Prompting
        ("prompt --task rte --seeds a", "invalid seeds 'a'", "0-4"),
        ("prompt --task ", "unknown task ''", ""),
        ("prompt --task rte -o out.txt", "unknown kind of file '.txt'", ""),
        ("prompt --task rte -o -", "the format of standard output is unknown", "-o"),
        # Generation
        ("prompt --task rte --seeds 0-4", "--seeds has no effect without", "--shots"),
        ("prompt --task rte --shared", "--shared has no effect without", "--shots"),
        ("prompt --task rte --set train.epochs=2", "train.epochs has no effect", ""),
        ("compare --task rte --no-shots --shots 4", "--shots and --no-shots exclude", ""),
        ("compare --task rte --list --overwrite", "--overwrite and --list exclude", ""),
        ("compare --task rte --set train.seed=3", "train.seed has no effect", "--seeds 3"),
        ("generate --base BASE", "no prompt given", "--file"),
        ("generate x -f texts.jsonl", "both texts and a file of prompts", ""),
        ("generate x --base ", "no such folder", ""),
        ("generate x -o no/out.csv", "there is no folder 'no'", ""),
        ("generate x --num-processes 2", "--num-processes needs a file", "--file"),
        ("generate -f - --num-processes 2", "--num-processes needs a file", "--file"),
        ("generate x --base BASE --max-new-tokens 99", "96 positions", ""),
        ("generate -f pairs.jsonl --base BASE", "no text in column 'text'", "--column"),
    ],
)
def test_wrong_commands(refuses, words, what, cure):
    refuses(words, what, cure)


def test_a_plan_is_not_a_recipe(refuses, folder):
    (folder / "mine.yaml").write_text("corpus: {train: books}\nshape: {layers: 2}\n")
    refuses(TRAIN, "plan", "pretrain")


def test_a_run_in_use(refuses, folder):
    with RunFolder.open(folder / "runs" / "mine"):
        refuses(TRAIN, "in use by process", "another directory")
