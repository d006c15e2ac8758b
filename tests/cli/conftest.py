"""A base and a task that several commands use."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from finetune.cli import main
from finetune.recipe.schema import DataConfig, PromptConfig, Recipe
from finetune.recipe.yaml_documents import write_document
from tests.support.jobs import TASKS, change, rows, write_rows

TEXT = "It rained all night, and in the morning the street was covered with leaves. "
PLAN = {
    "corpus": {"train": "elsewhere"},
    "tokenizer": {"vocabulary": 280},
    "shape": {"style": "gpt2", "layers": 1, "width": 16, "heads": 2, "positions": 32},
    "train": {"batch_size": 4, "warmup_updates": 1, "evaluations": 1, "precision": "fp32"},
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of 32 positions that `gptft pretrain` has trained on a folder of texts."""
    home = tmp_path_factory.mktemp("pretrain")
    for name in ("train", "valid"):
        (home / "books" / name).mkdir(parents=True)
        (home / "books" / name / "book.txt").write_text(TEXT * 30)
    (home / "small.yaml").write_text(write_document(PLAN))
    words = ["pretrain", str(home / "small.yaml"), "--corpus", str(home / "books")]
    words += ["--updates", "4", "--learning-rate", "1e-2", "-o", str(home / "run")]
    assert main(words) == 0
    return home / "run"


@pytest.fixture
def task(tmp_path: Path) -> str:
    """The recipe of an entailment task with a prompt and a metric that is computed quickly."""
    for name, seed in (("train", 1), ("dev", 2)):
        write_rows(tmp_path / f"{name}.jsonl", rows("entailment", 12, seed))
    data = DataConfig(train="train.jsonl", evaluate="dev.jsonl")
    prompt = PromptConfig(text="{premise} {hypothesis}", answers={"yes": " yes", "no": " no"})
    values = {"prompt": prompt, "metrics": ("accuracy",), "positive": None}
    recipe = change(Recipe(task=TASKS["entailment"], data=data), "task", **values)
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    return str(tmp_path / "mine.yaml")


RECIPE = """\
task:
  format: {kind}
  columns: {columns}
  {labels}
  metrics: [{metrics}]
base: {{path: {base}}}
data: {{train: train.jsonl, evaluate: held-out.jsonl, extra: {{more: more.jsonl}}}}
train: {{epochs: 2, batch_size: 4, max_tokens: 48, precision: fp32, learning_rate: 0.003}}
"""
KINDS = {
    "entailment": {
        "columns": "{premise: premise, hypothesis: hypothesis, label: label}",
        "labels": "labels: [no, yes]",
        "metrics": "accuracy",
    },
    "similarity": {
        "columns": "{first: one, second: other, label: label}",
        "labels": "range: [0, 5]",
        "metrics": "pearson, mse",
    },
    "multiple_choice": {
        "columns": '{context: "{story} {question}", choices: choices, label: label}',
        "labels": "labels: {0: A, 1: B, 2: C, 3: D}",
        "metrics": "accuracy",
    },
}


class TrainedRun(NamedTuple):
    """A finished run of `gptft train --task mine.yaml`; to be read only."""

    kind: str
    folder: Path
    output: str

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "mine"


@pytest.fixture(scope="session", params=KINDS)
def trained(
    request: pytest.FixtureRequest,
    bases: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> TrainedRun:
    """A run of each kind on a tiny base."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    for seed, name in enumerate(["train", "held-out", "more"]):
        kind_of_rows = "score" if kind == "similarity" else kind
        write_rows(folder / f"{name}.jsonl", rows(kind_of_rows, 12, seed))
    recipe = RECIPE.format(kind=kind, base=bases("gpt2"), **KINDS[kind])
    (folder / "mine.yaml").write_text(recipe)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", output)
        words = ["train", "--task", "mine.yaml", "--epochs", "1", "--set", "train.warmup=0.1"]
        assert main(words) == 0
    return TrainedRun(kind, folder, output.getvalue())


def read_scores(output: str) -> dict[str, dict[str, str]]:
    """Split to metric to the printed number, from a table; without rows and baselines."""
    lines = [line.split() for line in output.splitlines() if line.strip()]
    [header] = [n for n, words in enumerate(lines) if words[0] == "split"]
    has_rows = lines[header][1] == "rows"
    metrics = lines[header][1 + has_rows :]
    scores = {}
    for split, *values in lines[header + 2 :]:
        if [split, *values[:1]] in (["majority", "class"], ["mean", "score"]):
            continue
        numbers = values[has_rows:]
        if len(numbers) != len(metrics) or not re.fullmatch(r"-?\d+\.\d{4}", numbers[0]):
            break
        scores[split] = dict(zip(metrics, numbers, strict=True))
    return scores


def round_scores(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, str]]:
    return {
        split: {metric: f"{value:.4f}" for metric, value in row.items()}
        for split, row in scores.items()
    }
