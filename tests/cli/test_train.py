"""The verbs that train and use a run, end to end on a tiny base."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest

from finetune.checkpointing.run_folder import read_recipe, read_result
from finetune.cli import main
from finetune.data import read_rows
from finetune.recipe.loading import load_recipe
from tests.support import families
from tests.support.jobs import rows, write_rows

RECIPE = """\
task:
  format: FORMAT
  columns: COLUMNS
  LABELS
  metrics: [METRICS]
base: {path: BASE}
data: {train: train.jsonl, evaluate: held-out.jsonl, extra: {more: more.jsonl}}
train: {epochs: 2, batch_size: 4, max_tokens: 48, precision: fp32, learning_rate: 0.003}
"""
KINDS = {
    "entailment": (
        "{premise: premise, hypothesis: hypothesis, label: label}", "labels: [no, yes]", "accuracy"
    ),
    "similarity": ("{first: one, second: other, label: label}", "range: [0, 5]", "pearson, mse"),
    "multiple_choice": (
        '{context: "{story} {question}", choices: choices, label: label}',
        "labels: {0: A, 1: B, 2: C, 3: D}", "accuracy",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return families.make("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module", params=KINDS)
def job(request, base, tmp_path_factory):
    """A folder with rows, a recipe, and the run that `gptft train` has made of them."""
    kind = request.param
    here = tmp_path_factory.mktemp(kind)
    made = "score" if kind == "similarity" else kind
    for seed, name in enumerate(["train", "held-out", "more"]):
        write_rows(here / f"{name}.jsonl", rows(made, 12, seed))
    columns, labels, metrics = KINDS[kind]
    text = RECIPE.replace("FORMAT", kind).replace("COLUMNS", columns).replace("LABELS", labels)
    (here / "mine.yaml").write_text(text.replace("METRICS", metrics).replace("BASE", str(base)))
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "stdout", out)
        code = main(["train", "--task", "mine.yaml", "--epochs", "1", "--set", "train.warmup=0.1"])
    assert code == 0
    return SimpleNamespace(kind=kind, here=here, run=here / "runs" / "mine", said=out.getvalue())


@pytest.fixture
def here(job, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(capfd, *words):
    """Standard output of a command that goes well."""
    assert main([str(word) for word in words]) == 0
    return capfd.readouterr().out


def scores(text):
    """Split to metric to the number printed, from a table."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    [at] = [n for n, words in enumerate(lines) if words[0] == "split"]
    names = lines[at][1:]
    found = {}
    for words in lines[at + 2 :]:
        if len(words) != len(names) + 1 or not re.fullmatch(r"-?\d+\.\d{4}", words[1]):
            break
        found[words[0]] = dict(zip(names, words[1:], strict=True))
    return found


def rounded(scores):
    return {s: {m: f"{value:.4f}" for m, value in row.items()} for s, row in scores.items()}


def test_the_resolved_recipe_is_saved_and_the_scores_are_shown(job, here):
    saved = load_recipe(job.run / "recipe.yaml")
    assert (saved.train.epochs, saved.train.warmup, saved.train.batch_size) == (1, 0.1, 4)
    assert "weight_decay: 0.01" in read_recipe(job.run)
    assert "12 examples, 3 updates, evaluated on 12" in job.said
    assert "update 3/3 100%" in job.said
    assert scores(job.said) == rounded(read_result(job.run)["scores"])
    assert "gptft predict runs/mine FILE -o OUT" in job.said


def test_evaluate_gives_the_scores_of_training(job, here, capfd):
    result = read_result(job.run)["scores"]
    assert scores(ask(capfd, "evaluate", job.run)) == rounded(result)
    more = scores(ask(capfd, "evaluate", job.run, "--split", "more"))
    assert list(more) == ["more"]
    assert next(iter(more.values())) == rounded(result)["more"]
    both = scores(ask(capfd, "evaluate", job.run, "--split", "train", "--split", "evaluate"))
    assert list(both) == ["train", "evaluate"]


def test_predict_gives_what_training_scored(job, here, capfd):
    ask(capfd, "predict", job.run, job.here / "held-out.jsonl", "-o", "out.jsonl")
    given = [row for _, row in read_rows(job.here / "held-out.jsonl")]
    found = [row for _, row in read_rows("out.jsonl")]
    assert [{name: row[name] for name in given[0]} for row in found] == given
    result = next(iter(read_result(job.run)["scores"].values()))
    if job.kind == "similarity":
        squares = [(row["predicted_label"] - row["label"]) ** 2 for row in found]
        assert sum(squares) / len(squares) == pytest.approx(result["mse"], rel=1e-5)
        return
    names = {"entailment": ["no", "yes"], "multiple_choice": list("ABCD")}[job.kind]
    right = 0
    for row in found:
        weights = [row[f"probability_{name}"] for name in names]
        known = [weight for weight in weights if weight is not None]
        assert sum(known) == pytest.approx(1)
        assert len(known) == (len(row["choices"]) if job.kind == "multiple_choice" else 2)
        assert row["predicted_label"] == names[weights.index(max(known))]
        gold = row["label"] if job.kind == "entailment" else names[row["label"]]
        right += row["predicted_label"] == gold
    assert right / len(found) == pytest.approx(result["accuracy"])


def test_every_format_in_and_out_says_the_same(job, here, capfd, monkeypatch):
    file = job.here / "more.jsonl"
    ask(capfd, "predict", job.run, file, "-o", "all.jsonl")
    first = [row for _, row in read_rows("all.jsonl")]
    for name in ("out.csv", "out.parquet", "out.json"):
        ask(capfd, "predict", job.run, file, "-o", name)
        again = [row for _, row in read_rows(name)]
        assert [row["predicted_label"] for row in again] == [
            str(row["predicted_label"]) if name == "out.csv" else row["predicted_label"]
            for row in first
        ]
        assert list(again[0]) == list(first[0])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    piped = ask(capfd, "predict", job.run, "-", "--input-format", "jsonl")
    assert [json.loads(line) for line in piped.splitlines()] == first


def test_unlabelled_and_unusable_rows(job, here, capfd):
    good = [{k: v for k, v in row.items() if k != "label"} for _, row in read_rows(
        job.here / "more.jsonl"
    )]  # fmt: skip
    field = {"entailment": "premise", "similarity": "one", "multiple_choice": "story"}[job.kind]
    bad = {**good[3], field: "  ", "question": ""}
    write_rows(here / "new.jsonl", [*good[:3], bad, *good[4:]])
    assert main(["predict", str(job.run), "new.jsonl", "-o", "out.jsonl"]) == 2
    assert capfd.readouterr().err.startswith("error: new.jsonl, line 4: empty text")
    assert not (here / "out.jsonl").exists()
    words = ["predict", str(job.run), "new.jsonl", "-o", "out.jsonl", "--on-bad-row", "skip"]
    assert main(words) == 0
    error = capfd.readouterr().err
    assert "Labelled 11 rows into out.jsonl." in error
    assert "skipped: new.jsonl, line 4: empty text" in error
    found = [row for _, row in read_rows("out.jsonl")]
    assert [row[field] for row in found] == [row[field] for row in good[:3] + good[4:]]
    assert "label" in found[0]
    assert "predicted_label" not in found[0]


def test_a_finished_run_is_not_trained_again(job, here, capfd, monkeypatch):
    monkeypatch.chdir(job.here)
    before = (job.run / "metrics.jsonl").read_bytes()
    assert "is finished already" in ask(capfd, "resume", "runs/mine")
    assert main(["train", "--task", "mine.yaml"]) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert (job.run / "metrics.jsonl").read_bytes() == before


MODULE = """
from task_formats import FORMATS, Classes, Task

task = Task(
    format=FORMATS["classification"],
    columns={"text": "both", "label": "label"},
    labels=Classes.of(["no", "yes"]),
    metrics=("accuracy",),
    read=lambda row: {**row, "both": row["premise"] + " / " + row["hypothesis"]},
)
"""


def test_a_task_written_in_python_trains_scores_and_predicts(base, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_task_for_runs.py").write_text(MODULE)
    write_rows(tmp_path / "rows.jsonl", rows("entailment", 8))
    name = "own_task_for_runs:task"
    said = ask(
        capfd, "train", "--task", name, "--base", base, "--set", "data.train=rows.jsonl", "--set",
        "data.evaluate=rows.jsonl", "--epochs", "1", "--max-tokens", "48", "--precision", "fp32",
    )  # fmt: skip
    shown = next(iter(scores(said).values()))
    again = next(iter(scores(ask(capfd, "evaluate", "runs/task", "--task", name)).values()))
    assert again == shown
    out = ask(capfd, "predict", "runs/task", "rows.jsonl", "--task", name)
    right = [json.loads(line) for line in out.splitlines()]
    accuracy = sum(row["predicted_label"] == row["label"] for row in right) / len(right)
    assert f"{accuracy:.4f}" == shown["accuracy"]
