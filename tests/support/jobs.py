"""Small fine-tuning jobs of every kind: rows in files, and recipes for a tiny base."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import finetune
import finetune.data.splits
from finetune.checkpointing.run_folder import LOG, read_result
from finetune.distributed.setup import create_accelerator
from finetune.models.losses import objective
from finetune.recipe.schema import BaseConfig, DataConfig, Recipe, TaskConfig, TrainConfig
from finetune.training.events import Interrupted
from finetune.training.finetuning import FinetuningJob, events, prepare_finetuning
from finetune.training.loop import Step
from task_formats import Example
from tests.support.samples import WORDS

NOISY = {"head_dropout": 0.1, "base_part": {"dropout": 0.1}, "evaluations": 2}
"""Settings with random numbers in every pass."""

TASKS = {
    "classification": TaskConfig(
        format="classification",
        columns={"text": "text", "label": "label"},
        labels={0: "bad", 1: "middling", 2: "good"},
    ),
    "entailment": TaskConfig(
        format="entailment",
        columns={"premise": "premise", "hypothesis": "hypothesis", "label": "label"},
        labels=("no", "yes"),
        metrics=("accuracy", "f1", "matthews"),
        positive="yes",
    ),
    "similarity": TaskConfig(
        format="similarity",
        columns={"first": "one", "second": "other", "label": "label"},
        labels={0: "different", 1: "same"},
        metrics=("macro_f1", "accuracy"),
        select="mean",
    ),
    "score": TaskConfig(
        format="similarity",
        columns={"first": "one", "second": "other", "label": "label"},
        range=(0, 5),
        metrics=("mse", "pearson", "spearman"),
    ),
    "multiple_choice": TaskConfig(
        format="multiple_choice",
        columns={"context": "{story} {question}", "choices": "choices", "label": "label"},
        labels={0: "A", 1: "B", 2: "C", 3: "D"},
    ),
    "multi_label": TaskConfig(
        format="classification",
        columns={"text": "text", "label": "label"},
        labels=("sun", "rain", "wind", "snow"),
        multi_label=True,
        metrics=("micro_f1", "macro_f1", "accuracy", "roc_auc", "average_precision"),
    ),
}
"""The four kinds, similarity with a score, and classification with several labels."""
_SEEDS = ("classification", "entailment", "multiple_choice", "score", "similarity", "multi_label")

TEXTS = ("text", "premise", "hypothesis", "one", "other", "story", "question")


def rows(kind: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random words with every column that a task of `TASKS` reads; choices are 2 to 4."""
    draw = np.random.default_rng([seed, _SEEDS.index(kind)])

    def row() -> dict[str, Any]:
        choices = [_words(draw, 5) for _ in range(draw.integers(2, 5))]
        labels: dict[str, Any] = {
            "classification": int(draw.integers(3)),
            "entailment": str(draw.choice(["no", "yes"])),
            "similarity": int(draw.integers(2)),
            "score": round(float(draw.uniform(0, 5)), 3),
            "multiple_choice": int(draw.integers(len(choices))),
        }
        if kind == "multi_label":
            labels[kind] = [name for name in TASKS[kind].labels if draw.random() < 0.4]
        texts = {name: _words(draw, 12) for name in TEXTS}
        return {**texts, "choices": choices, "label": labels[kind]}

    return [row() for _ in range(count)]


def _words(draw: np.random.Generator, most: int) -> str:
    return " ".join(draw.choice(WORDS, draw.integers(1, most)))


def write_rows(path: Path, many: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in many), encoding="utf-8")
    return str(path)


def recipe(
    kind: str,
    base: Path | str,
    folder: Path,
    *,
    train: int = 20,
    held_out: int = 9,
    base_part: dict[str, Any] | None = None,
    **settings: Any,
) -> Recipe:
    """A job of some updates without dropout on fresh files in `folder`; `settings` change it."""
    folder.mkdir(parents=True, exist_ok=True)
    data = DataConfig(
        train=write_rows(folder / "train.jsonl", rows(kind, train)),
        evaluate=write_rows(folder / "held-out.jsonl", rows(kind, held_out, seed=1)),
    )
    quiet = {"learning_rate": 1e-3, "batch_size": 8, "epochs": 2, "max_tokens": 48}
    papers = {"lm_coefficient": 0.5, "optimizer": "adam", "schedule": "gpt1", "warmup": 0.002}
    part = TrainConfig(**{**quiet, **papers, "precision": "fp32", **settings})
    decoder = BaseConfig(
        path=str(base), **{"dropout": 0, "new_tokens": "mean", **(base_part or {})}
    )
    return Recipe(task=TASKS[kind], base=decoder, data=data, train=part)


def prepare(recipe: Recipe) -> FinetuningJob:
    """The job on this process, before its first update."""
    accelerator = create_accelerator("fp32", "cpu")
    return prepare_finetuning(recipe, recipe.task.build(), accelerator)


def first_update(recipe: Recipe) -> tuple[int, Tensor, Tensor, Tensor]:
    """The forward passes, task loss, logits and labels of the first update, without dropout."""
    job = prepare(recipe)
    job.model.eval()
    passes = job.make_microbatches(1, None).batches
    with torch.no_grad():
        outputs = [job.model(batch) for batch in passes]
    options = job.settings.task_loss
    loss = sum(
        objective(output, batch, 0.0, options).task
        for output, batch in zip(outputs, passes, strict=True)
    )
    logits = torch.cat([output.logits for output in outputs])
    return len(passes), loss, logits, torch.cat([batch.label for batch in passes])


def train(recipe: Recipe, folder: Path, **options: Any) -> Path:
    """The folder of the finished run."""
    finetune.train(recipe, folder, **options)
    return folder


def change(recipe: Recipe, part: str, **values: Any) -> Recipe:
    """The recipe with some values of one part changed."""
    return recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=values)})


def weights(run: Path) -> dict[str, Tensor]:
    """The saved model of a run: decoder and head."""
    model = run / "model"
    return {**load_file(model / "model.safetensors"), **load_file(model / "head.safetensors")}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest |a - b| over all weights; infinite when their names differ."""
    if one.keys() != other.keys():
        return float("inf")
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def log(run: Path) -> list[dict[str, Any]]:
    """What a run logged, without what a clock measured."""
    logged = [json.loads(line) for line in (run / LOG).read_bytes().splitlines()]
    return [{key: event[key] for key in event if key != "seconds"} for event in logged]


def result(run: Path) -> dict[str, Any]:
    """A run's result, without what a clock measured."""
    return {name: value for name, value in read_result(run).items() if name != "seconds"}


def numbers(run: Path) -> list[float]:
    """Every number that a run logged, in order, but those that depend on the layout or a clock."""
    values = [value for e in log(run) for value in {**e, **e.get("scores", {})}.values()]
    return [value for value in values if isinstance(value, float)]


def assert_same(run: Path, other: Path) -> None:
    """To the bit: the saved model, the log and the result."""
    assert distance(weights(run), weights(other)) == 0
    assert log(run) == log(other)
    assert result(run) == result(other)


def watch_examples(note: Callable[[Example], Example]) -> Callable[..., Any]:
    """`finetune.data.splits.read_examples`, but each example is given to `note` as it is read."""
    read = finetune.data.splits.read_examples

    def watched(*arguments: Any, **options: Any) -> Any:
        examples, report = read(*arguments, **options)
        return map(note, examples), report

    return watched


def stop_at(recipe: Recipe, run: Path, update: int, number: int = signal.SIGTERM) -> Interrupted:
    """Resumes or starts a run, and sends this process a signal after an update."""

    def watch() -> None:
        for event in events(recipe, run, resume=True):
            if isinstance(event, Step) and event.number == update:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as stop:
        watch()
    return stop.value
