"""Evaluations are spread evenly, and sizes that no machine holds are refused."""

import pytest
from pydantic import ValidationError

from finetune.batching.sampler import EpochSampler
from finetune.pretraining.plan import Plan
from finetune.training.progress import plan_evaluations, spread_evenly

MANY = 2**31 - 1


@pytest.mark.parametrize(
    ("evaluations", "due"),
    [(1, [6, 12, 15]), (2, [3, 6, 9, 12, 15]), (6, list(range(1, 16))), (MANY, list(range(1, 16)))],
)
def test_evaluations_are_spread_evenly_and_at_most_one_per_update(evaluations, due):
    sampler = EpochSampler(rows=48, batch_size=8, epochs=2.5, seed=0)
    is_due = plan_evaluations(sampler, evaluations)
    assert [update for update in range(1, sampler.updates + 1) if is_due(update)] == due


@pytest.mark.parametrize(
    ("updates", "evaluations"), [(22, 1), (22, 10), (7, 7), (5, 12), (1000, 3), (9, MANY)]
)
def test_evaluations_of_pretraining_are_spread_evenly(updates, evaluations):
    due = spread_evenly(updates, evaluations)
    expected = {-(-updates * k // evaluations) for k in range(1, min(evaluations, 1000) + 1)}
    found = {update for update in range(1, updates + 1) if due(update)}
    assert found == (expected if evaluations < MANY else set(range(1, updates + 1)))


@pytest.mark.parametrize(
    "part",
    [{"shape": {"layers": MANY}}, {"tokenizer": {"vocabulary": MANY}}],
)
def test_a_decoder_of_too_many_layers_or_tokens_is_an_error(part):
    with pytest.raises(ValidationError, match="less than or equal to"):
        Plan(corpus={"train": "x"}, **part)
