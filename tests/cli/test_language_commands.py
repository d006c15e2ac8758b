"""The verbs pretrain, ask and generate, as they are typed."""

import json
from pathlib import Path

import pytest
import yaml

from finetune.checkpointing.run_folder import read_log, read_result
from finetune.cli import main
from finetune.cli.commands.prompt import parse_seeds
from finetune.pretraining.plan import is_plan, parse_plan
from finetune.recipe.loading import dump_recipe
from finetune.recipe.schema import DataConfig, Recipe
from task_formats import UsageError
from tests.support.jobs import TASKS, rows

WORDS = "It rained all night, and in the morning the street was covered with leaves. "
PLAN = {
    "tokenizer": {"vocabulary": 280},
    "shape": {"style": "gpt2", "layers": 1, "width": 16, "heads": 2, "positions": 32},
    "train": {"batch_size": 4, "warmup_updates": 1, "evaluations": 1, "precision": "fp32"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base made by the command line, from a plan and a folder of texts."""
    home = tmp_path_factory.mktemp("pretrain")
    for name in ("train", "valid"):
        (home / "books" / name).mkdir(parents=True)
        (home / "books" / name / "book.txt").write_text(WORDS * 30)
    plan = home / "small.yaml"
    plan.write_text(yaml.safe_dump({"corpus": {"train": "elsewhere"}, **PLAN}))
    words = ["pretrain", str(plan), "--corpus", str(home / "books"), "--updates", "4"]
    assert main([*words, "--learning-rate", "1e-2", "-o", str(home / "run")]) == 0
    return home / "run"


@pytest.fixture
def task(base, tmp_path) -> Path:
    for name, seed in (("train", 1), ("dev", 2)):
        made = "".join(json.dumps(row) + "\n" for row in rows("entailment", 12, seed))
        (tmp_path / f"{name}.jsonl").write_text(made)
    prompt = {"text": "{premise} {hypothesis}", "answers": {"yes": " yes", "no": " no"}}
    part = {**TASKS["entailment"].model_dump(), "prompt": prompt}
    files = DataConfig(train="train.jsonl", evaluate="dev.jsonl")
    path = tmp_path / "mine.yaml"
    path.write_text(dump_recipe(Recipe.model_validate({"task": part, "data": files})))
    return path


def test_a_plan_and_a_folder_of_texts_make_a_base(base):
    told = parse_plan((base / "recipe.yaml").read_text())
    assert told.corpus.train == (str(base.parent / "books" / "train"),)
    assert told.corpus.evaluate == (str(base.parent / "books" / "valid"),)
    assert (told.train.updates, told.train.learning_rate) == (4, 1e-2)
    assert read_result(base)["scores"]["evaluate"]["bits_per_byte"] > 0
    assert sum(event["event"] == "train" for event in read_log(base)) == 4


def test_a_finished_run_says_so_and_a_plan_is_told_from_a_recipe(base, task, capsys):
    assert main(["resume", str(base)]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert is_plan((base / "recipe.yaml").read_text())
    assert not is_plan(task.read_text())


def test_a_base_goes_on_with_from(base, tmp_path, capsys):
    plan = base.parent / "small.yaml"
    corpus = str(base.parent / "books")
    words = ["pretrain", str(plan), "--corpus", corpus, "--updates", "1", "--from", str(base)]
    assert main([*words, "-o", str(tmp_path / "further")]) == 0
    out = capsys.readouterr().out
    assert "bits_per_byte" in out
    assert f"--base {tmp_path / 'further'}" in out


def test_shots_are_numbers_after_one_option(base, task, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "answers.jsonl"
    words = ["prompt", "--task", str(task), "--base", str(base), "--shots", "0", "1", "2"]
    assert main([*words, "--seeds", "0-1", "--precision", "fp32", "-o", str(out)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert table[0][:3] == ["shots", "in", "context"]
    assert [line[0] for line in table[2:5]] == ["0", "1", "2"]
    # Without demonstrations seeds make no difference.
    assert [line[-1] for line in table[2:5]] == ["rows", "seeds", "seeds"]
    assert table[5] == ["precision:", "fp32"]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    manners = list(dict.fromkeys((answer["shots"], answer["seed"]) for answer in answers))
    assert manners == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(answers) == 5 * 12
    assert all(sum(answer["probabilities"]) == pytest.approx(1) for answer in answers)
    assert {answer["label"] for answer in answers} <= {"yes", "no"}


def test_the_table_says_that_other_precisions_are_not_transformers_own(base, task, capsys):
    assert main(["prompt", "--task", str(task), "--base", str(base), "--precision", "bf16"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "precision: bf16 (--precision fp32 reproduces the numbers of transformers)" in out


def test_answers_are_written_under_the_name_of_what_they_hold(base, tmp_path):
    """A text that is its own answer has a log-probability, and a score is its label."""
    out = tmp_path / "answers.jsonl"
    given = {
        "cola": [{"sentence": "It rained all night.", "label": n} for n in (0, 1)],
        "stsb": [{"sentence1": "It", "sentence2": "rained", "label": n} for n in (1.0, 4.0)],
    }
    columns = {}
    for name, made in given.items():
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in made))
        changes = [f"data.{role}={rows}" for role in ("train", "evaluate")]
        words = ["prompt", "--task", name, "--base", str(base), "-o", str(out)]
        words += ["--prompt", "gpt1"] if name == "cola" else []
        assert main([*words, "--set", *changes, "data.path=null"]) == 0
        columns[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(columns["cola"][0]) == ["shots", "seed", "id", "label", "log_probability"]
    assert columns["cola"][0]["log_probability"] < 0
    assert list(columns["stsb"][0]) == ["shots", "seed", "id", "label"]


def test_a_limit_of_questions_leaves_the_solved_examples(base, task, tmp_path):
    out = tmp_path / "answers.jsonl"
    words = ["prompt", "--task", str(task), "--base", str(base), "--limit", "2", "--shots", "4"]
    assert main([*words, "-o", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_text_is_shown_with_what_follows_it(base, capsys):
    assert main(["generate", "It rained", "--base", str(base), "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("It rained")


def test_a_fine_tuned_run_is_a_base_that_answers_and_writes(base, task, tmp_path, capsys):
    """Its decoder, with the tokens that fine-tuning added, but without its head."""
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    words = ["train", "--task", str(task), "--base", str(base), "--max-tokens", "32"]
    assert main([*words, "--epochs", "1", "--precision", "fp32", "-o", str(run)]) == 0
    asked = ["prompt", "--task", str(task), "--precision", "fp32", "-o", str(out)]
    shares = []
    for path in (run, run / "model", base):
        assert main([*asked, "--base", str(path)]) == 0
        shares.append([json.loads(line)["probabilities"] for line in out.read_text().splitlines()])
    assert shares[0] == shares[1] != shares[2]
    capsys.readouterr()
    assert main(["generate", "It rained", "--base", str(run), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("It rained")


def test_rows_of_a_file_may_be_shared_by_processes_and_nothing_else(base, capsys):
    for words in (["It rained"], ["-f", "-"]):
        assert main(["generate", *words, "--base", str(base), "--num-processes", "2"]) == 2
        assert "--num-processes needs a file of prompts" in capsys.readouterr().err


def test_texts_are_written_to_a_file_where_one_is_named(base, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    words = ["generate", "It rained", "a", "--base", str(base), "--max-new-tokens", "3"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert main([*words, "-o", str(out), "--column", "say", "--batch-size", "1"]) == 0
    assert capsys.readouterr().out == ""
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["say"] for row in written] == ["It rained", "a"]
    assert "".join(f"{row['say']}{row['generated']}\n" for row in written) == shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"text": "a"}\n{"n": 1}\n', "line 2: no column 'text'"),
        ('{"text": "a"}\n{"text": null}\n', "line 2: no text in column 'text': None"),
        ('{"text": "a", "generated": "b"}\n', "already have a column 'generated'"),
        ("", "the file has no rows"),
        ('{"text": "a"}\n' * 1000 + '{"text": "a", "m": 1}\n', "'m' is in none of the first"),
    ],
)
def test_rows_that_cannot_be_gone_on_with_are_named(base, tmp_path, capsys, rows, message):
    texts, out = tmp_path / "texts.jsonl", tmp_path / "out.jsonl"
    texts.write_text(rows)
    words = ["generate", "-f", str(texts), "--base", str(base), "--max-new-tokens", "1"]
    assert main([*words, "--batch-size", "1000", "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert main([*words, "-o", str(texts)]) == 2
    assert "is also the input file" in capsys.readouterr().err
    assert not out.exists()
    assert texts.read_text() == rows


def test_a_row_that_is_too_long_is_named(base, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("It", WORDS, "a")))
    words = ["generate", "-f", str(texts), "--base", str(base), "--max-new-tokens", "20"]
    assert main([*words, "-o", str(tmp_path / "out.jsonl")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "texts.jsonl, line 2: a text of" in error


def test_rows_come_back_with_what_was_written(base, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"n": 1, "say": "It"}\n{"n": 2, "say": "and in"}\n{"n": 3, "say": "a"}\n')
    out = tmp_path / "out.csv"
    words = ["generate", "-f", str(texts), "--column", "say", "--base", str(base)]
    assert main([*words, "--max-new-tokens", "3", "--batch-size", "2", "-o", str(out)]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "n,say,generated"
    assert main([*words, "--max-new-tokens", "3", "--beams", "2"]) == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["n"] for row in written] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain", "tinny"], "unknown plan 'tinny'"),
        (["pretrain", "tiny", "--set", "train.lr=1"], "unknown key 'train.lr'"),
        (["pretrain", "tiny", "--corpus", "nowhere"], "no text files under 'nowhere'"),
        (["pretrain", "tiny"], "files with --corpus FOLDER"),
        (["prompt", "--task", "rte", "--seeds", "a"], "invalid seeds 'a'"),
        (["prompt", "--task", "rtee"], "unknown task 'rtee'"),
        (["prompt", "--task", "rte", "-o", "out.txt"], "unknown kind of file '.txt'"),
        (["prompt", "--task", "rte", "-o", "-"], "the format of standard output is unknown"),
        (["prompt", "--task", "rte", "-o", "no/out.csv"], "there is no folder 'no'"),
        (
            ["prompt", "--task", "rte", "--seeds", "0-4"],
            "--seeds has no effect without",
        ),
        (["prompt", "--task", "rte", "--shots", "0", "--shared"], "--shared has no effect"),
        (["prompt", "--task", "rte", "--set", "train.epochs=2"], "train.epochs has no effect"),
        (["prompt", "--task", "rte", "--base", ""], "base.path is empty"),
        (["prompt", "--task", ""], "unknown task ''"),
        (["generate", "x", "--base", ""], "no base is named"),
        (["generate", "x", "--base", "{base}/recipe.yaml"], "recipe.yaml is a file"),
        (["generate", "x", "-o", "no/out.csv"], "there is no folder 'no'"),
        (["pretrain", "tiny", "--corpus", ""], "corpus.train is empty"),
        (["pretrain", "tiny", "--from", ""], "base is empty"),
        (
            ["pretrain", "tiny", "--epochs", "2", "--updates", "3"],
            "epochs and updates exclude each other",
        ),
        (["pretrain", "tiny", "--from", "x", "--set", "shape.layers=2"], "shape.layers has no"),
        (["pretrain", "tiny", "--set", "train.betas=[5, 9]"], "train.betas.0 is the number 5"),
        (["pretrain", "{base}"], "is a folder"),
        (["evaluate", "{base}"], "this is a plan of pre-training"),
        (["train", "--task", "{base}/recipe.yaml"], "this is a plan of pre-training"),
        (["generate", "x", "--seed", "18446744073709551616"], "--seed cannot be 184467"),
        (["pretrain", "tiny", "--seed", "-1"], "train.seed is the number -1"),
        (["generate", "x", "--temperature", "0", "--top-k", "5"], "--top-k has no effect"),
        (["generate", "x", "-f", "texts.jsonl"], "both texts and a file of prompts"),
        (["generate", "x", "--column", "text"], "--column only applies to rows"),
        (["generate", "x", "--batch-size", "2"], "--batch-size only applies to rows"),
        (["generate", "x", "-o", "out.txt"], "unknown kind of file '.txt'"),
        (["generate", "--base", "{base}"], "no prompt given"),
        (["generate", "x", "--base", "{base}", "--max-new-tokens", "99"], "32 positions"),
        (["generate", "x", "--beams", "2", "--temperature", "1"], "beam search and sampling"),
        (["generate", "-f", "{base}/metrics.jsonl", "--base", "{base}"], "no column 'text'"),
    ],
)
def test_a_mistake_is_told_with_exit_code_2(base, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("{base}", str(base)) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_shown_of_a_text_that_does_not_fit(base, capsys):
    assert main(["generate", "x", "--base", str(base), "--max-new-tokens", "99"]) == 2
    assert capsys.readouterr().out == ""


def test_seeds_are_ranges_and_lists():
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("7") == [7]
    assert parse_seeds("0,0-1") == [0, 1]
    for wrong in ("4-2", "4294967296", "one", "-1", "0-4294967295"):
        with pytest.raises(UsageError, match="invalid seeds"):
            parse_seeds(wrong)
    assert parse_seeds("0-1,5,8-9") == [0, 1, 5, 8, 9]
    with pytest.raises(UsageError):
        parse_seeds("")
