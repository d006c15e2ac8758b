"""Activation checkpointing: the same numbers from fewer kept activations."""

import pytest
import torch

from finetune.batching.collate import collate
from finetune.models.blocks import checkpoint_activations
from task_formats import UsageError
from tests.support import jobs, samples


@pytest.mark.parametrize(
    ("kind", "family"),
    [("similarity", "gpt2"), ("multiple_choice", "llama"), ("entailment", "gpt_neox")],
)
def test_a_run_gives_the_same_bits(kind, family, bases, tmp_path):
    """Also with dropout, whose masks are drawn again, and with the last block's shortcut."""
    noisy = {"base_part": {"dropout": 0.1}, "head_dropout": 0.1, "epochs": 1, "lm_coefficient": 0}
    recipe = jobs.recipe(kind, bases(family), tmp_path / "data", **noisy)
    whole = jobs.train(recipe, tmp_path / "whole")
    changed = jobs.change(recipe, "train", activation_checkpointing=True)
    again = jobs.train(changed, tmp_path / "again")
    assert jobs.distance(jobs.weights(whole), jobs.weights(again)) == 0
    assert jobs.numbers(whole) == jobs.numbers(again)


def kept_bytes(model, batch) -> int:
    """Bytes of the tensors that the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, lm=True)
    return sum(kept.values())


def test_the_forward_pass_keeps_less(bases):
    model, many, pad = samples.prepare("entailment", bases("gpt2"))
    batch = collate(many, "packed", pad)
    whole = kept_bytes(model, batch)
    checkpoint_activations(model.backbone.decoder)
    assert kept_bytes(model, batch) < 0.7 * whole


def test_a_decoder_without_it_is_refused(bases):
    model, *_ = samples.prepare("entailment", bases("openai-gpt"))
    with pytest.raises(UsageError, match="no activation checkpointing"):
        checkpoint_activations(model.backbone.decoder)
