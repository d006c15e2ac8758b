"""Every row of a split is evaluated once, and predictions are in the order of the rows."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from finetune.batching.collate import collate
from finetune.batching.sampler import BatchConfig
from finetune.evaluation.evaluate import (
    EvaluationResult,
    compute_logits,
    evaluate,
    gather_logits,
)
from task_formats import Task
from tests.support import samples
from tests.support.samples import KINDS

ACCELERATOR = Accelerator(cpu=True)


def task_of(name: str) -> Task:
    kind = KINDS[name]
    columns = dict.fromkeys(kind.format.fields, "x") | {"label": "y"}
    columns |= {"choices": "z"} if kind.format.is_multiple_choice else {}
    return Task(kind.format, columns, kind.labels, ("mse" if name == "score" else "accuracy",))


def evaluate_examples(model, examples, name: str, base, limit: int) -> EvaluationResult:
    config = BatchConfig("packed", base.task_tokens.pad_id, limit)
    passes = compute_logits(model, examples, config, ACCELERATOR)
    return evaluate(passes, examples, task_of(name), ACCELERATOR)


@pytest.mark.parametrize("name", sorted(KINDS))
@pytest.mark.parametrize("limit", [1, 70, 10_000])
def test_every_row_is_scored_once_and_in_order(name: str, limit: int, bases) -> None:
    kind, base = KINDS[name], samples.load(bases("gpt2"))
    examples = samples.examples(kind, base, count=9)
    model = samples.task_model(kind, base, dropout=0.5)
    result = evaluate_examples(model, examples, name, base, limit)
    assert model.training
    model.eval()
    values, losses = [], []
    for example, prediction in zip(examples, result.predictions, strict=True):
        batch = collate([example], "separate", base.task_tokens.pad_id)
        with torch.no_grad():
            logits = model(batch).logits[0].double()
        assert prediction.id == example.id
        if name == "score":
            assert prediction.label == pytest.approx(logits.item(), rel=1e-5)
            values.append((logits.item() - example.label) ** 2)
            losses.append(values[-1])
            continue
        probabilities = logits.softmax(0)
        chooses = kind.format.is_multiple_choice
        assert len(logits) == (len(example.endings) if chooses else kind.labels.num_outputs)
        assert prediction.scores == pytest.approx(probabilities.tolist(), rel=1e-4)
        best = int(logits.argmax())
        assert prediction.label == kind.labels.names[best]
        values.append(best == example.label)
        losses.append(-math.log(probabilities[example.label]))
    assert result.scores == pytest.approx(
        {task_of(name).metrics[0]: np.mean(values), "loss": np.mean(losses)}, rel=1e-4
    )


def test_rows_without_a_label_are_predicted_and_not_scored(bases) -> None:
    kind, base = KINDS["entailment"], samples.load(bases("gpt2"))
    examples = samples.examples(kind, base, count=4)
    model = samples.task_model(kind, base)
    unlabelled = [example._replace(label=None) for example in examples[:2]]
    mixed = [unlabelled[0], *examples[:2], unlabelled[1], *examples[2:]]
    result = evaluate_examples(model, mixed, "entailment", base, 100)
    expected = evaluate_examples(model, examples, "entailment", base, 100)
    assert result.scores == pytest.approx(expected.scores)
    assert [p.id for p in result.predictions] == [example.id for example in mixed]


@pytest.mark.parametrize("indices", [[0, 1], [0, 1, 1], [0, 1, 2, 2], [0, 1, 3], []])
def test_missing_and_duplicate_rows_are_refused(indices: list[int]) -> None:
    with pytest.raises(RuntimeError, match=f"{len(indices)} results for 3 rows"):
        gather_logits([[(index, np.zeros(2, np.float32)) for index in indices]], 3, ACCELERATOR)


def test_a_nan_logit_does_not_shift_the_classes(bases) -> None:
    """If it were removed, the classes after it would get other names."""
    kind, base = KINDS["classification"], samples.load(bases("gpt2"))
    (example,) = samples.examples(kind, base, count=1)
    row = np.array([math.nan, 0.0, 1.0], np.float32)
    result = evaluate([[(0, row)]], [example], task_of("classification"), ACCELERATOR)
    assert len(result.predictions[0].scores) == 3
    assert math.isnan(result.scores["loss"])
