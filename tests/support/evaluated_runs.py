"""Evaluated runs without a model, with random predictions, for tests of reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.examples import ReadReport
from finetune.models.token_views import PreviewToken, TokenView
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig
from finetune.reports.evaluated_run import EvaluatedRun, History, Predictions, score_rows
from task_formats import Classes, Example, MultiLabel
from tests.support.jobs import TASKS, rows, write_rows

RESULT = {
    "scores": {},
    "update": 4,
    "updates": 6,
    "tokens": 1234,
    "seconds": 5.5,
    "made_with": {
        "versions": {"gptft": "0.1.0"},
        "base": {"weights": "ab" * 32},
        "data": {"train": "cd" * 32},
        "rows": {"train": 4},
    },
}


def make_run(
    folder: Path,
    kind: str | TaskConfig,
    count: int = 30,
    *,
    seed: int = 0,
    name: str = "run",
    examples: list[dict[str, Any]] | None = None,
    **task_values: Any,
) -> EvaluatedRun:
    """A run with random predictions on the rows of `folder`/held-out.jsonl.

    Gold labels depend on the rows only, predictions on the seed. `examples` replace random rows.
    """
    (folder / name).mkdir(parents=True, exist_ok=True)
    config = TASKS[kind] if isinstance(kind, str) else kind
    config = TaskConfig(**{**config.model_dump(exclude_unset=True), **task_values})
    held_out = examples if examples is not None else rows(str(kind), count)
    data = DataConfig(
        train=write_rows(folder / "train.jsonl", held_out[:4]),
        evaluate=write_rows(folder / "held-out.jsonl", held_out),
    )
    recipe = Recipe(about="A test.", task=config, data=data)
    (folder / name / "recipe.yaml").write_text(f"about: {json.dumps(name)}\n")
    task = config.build()
    items = [task.example(row, f"held-out.jsonl/{n}") for n, row in enumerate(held_out)]
    predictions = predict(items, task.labels, seed)
    scores = score_rows(task, predictions, np.arange(len(items)))
    return EvaluatedRun(
        name=name,
        folder=folder / name,
        recipe=recipe,
        task=task,
        split=str(data.evaluate),
        origin=str(data.evaluate),
        fingerprint="",
        report=ReadReport(rows=len(items)),
        scores={**scores, "loss": float(predictions.losses.mean())},
        predictions=predictions,
        history=History(
            np.arange(1, 7),
            np.array([0.9, 0.8, np.nan, 0.7, 0.6, 0.5]),
            np.full(6, 3.0),
            ((3, {**scores, "loss": 0.8}), (6, {**scores, "loss": 0.6})),
        ),
        result=RESULT,
    )


def predict(items: list[Example], labels: Any, seed: int) -> Predictions:
    """Random predictions; absent choices have probability 0."""
    generator, count = np.random.default_rng(seed), len(items)
    gold = np.array([item.label for item in items])
    table = None
    if isinstance(labels, Classes):
        logits = generator.normal(size=(count, labels.num_outputs)) * 2
        for row, item in zip(logits, items, strict=True):
            row[len(item.choices) or len(row) :] = -np.inf
        logits[np.arange(count), gold] += 1
        table = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        predicted, losses = table.argmax(axis=1), -np.log(table[np.arange(count), gold])
    elif isinstance(labels, MultiLabel):
        gold = gold.astype(int)
        logits = generator.normal(size=gold.shape) * 2 + gold
        table = 1 / (1 + np.exp(-logits))
        predicted = (table >= (labels.thresholds or 0.5)).astype(int)
        losses = np.logaddexp(0, np.where(gold == 1, -logits, logits)).mean(axis=1)
    else:
        predicted = gold + generator.normal(size=count)
        losses = (predicted - gold) ** 2
    tokens = generator.integers(5, 60, count)
    truncated = np.where(generator.random(count) < 0.2, 3, 0)
    return Predictions(
        tuple(item.id for item in items), gold, predicted, table, losses, tokens, truncated
    )


def view_tokens(example: Example) -> list[TokenView]:
    """One view: S, the words of the fields separated by D, E."""
    tokens = [PreviewToken("S", None)]
    for index, text in enumerate(example.fields.values()):
        tokens += [PreviewToken("D", None)] if index else []
        tokens += [PreviewToken(text, index)]
    return [TokenView([*tokens, PreviewToken("E", None)], {})]
