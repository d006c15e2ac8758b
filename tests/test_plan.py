"""The plan of a pre-training run: the paper's defaults, and what is refused."""

import pytest
from pydantic import ValidationError

from finetune.pretraining.plan import Plan

CORPUS = {"train": "books"}


def test_what_is_not_said_is_the_papers():
    """Facts, section 1, pre-training settings."""
    plan = Plan.model_validate({"corpus": CORPUS})
    shape, train = plan.shape, plan.train
    assert (shape.style, shape.layers, shape.width, shape.heads) == ("gpt1", 12, 768, 12)
    assert (shape.positions, plan.tokenizer.vocabulary) == (512, 40_000)
    assert (train.learning_rate, train.warmup_updates, train.epochs) == (2.5e-4, 2000, 100)
    assert (train.batch_size, train.context, train.dropout) == (64, None, 0.1)
    assert (train.weight_decay, train.initial_spread, train.max_grad_norm) == (0.01, 0.02, 1.0)
    assert plan.corpus.train == ("books",)
    assert not train.mix_documents


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"train": []}}, "names no file"),
        ({"corpus": {**CORPUS, "trian": "x"}}, "trian"),
        ({"shape": {"width": 100, "heads": 12}}, "width 100 is not a multiple of heads 12"),
        ({"shape": {"style": "llama", "heads": 12, "key_value_heads": 5}}, "key_value_heads 5"),
        ({"shape": {"style": "llama", "width": 36, "heads": 12}}, "even"),
        ({"shape": {"style": "gpt2", "tied": False}}, "for style: llama"),
        ({"shape": {"style": "gpt3"}}, "gpt1"),
        ({"train": {"context": 513}}, "train.context 513 is more than shape.positions 512"),
        ({"tokenizer": {"vocabulary": 256}}, "257"),
        ({"train": {"learning_rate": 0}}, "greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Plan.model_validate({"corpus": CORPUS, **changes})


def test_a_base_brings_its_own_positions():
    plan = Plan.model_validate({"corpus": CORPUS, "base": "gpt2", "train": {"context": 1024}})
    assert plan.train.context == 1024
