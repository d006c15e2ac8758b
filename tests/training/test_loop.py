"""Updates of a real job against an independent implementation of GPT-1."""

import numpy as np
import pytest
import torch

from finetune.distributed.setup import create_accelerator
from finetune.training.finetuning import FinetuningJob, prepare_finetuning
from finetune.training.loop import run_updates
from tests.support import jobs, reference
from tests.support.samples import KINDS


def paper_weights(job: FinetuningJob) -> dict[str, np.ndarray]:
    """Decoder and head under the reference's names, in float64."""
    found = job.base.decoder.base_model.named_parameters()
    decoder = {name: value.detach().numpy().copy() for name, value in found}
    head = {f"head.{name}": value for name, value in job.model.head.named_parameters()}
    return {**decoder, **{name: value.detach().numpy().copy() for name, value in head.items()}}


def paper_gradients(job: FinetuningJob, weights: dict[str, np.ndarray], update: int, kind: str):
    """The reference's loss and gradients for the rows of an update."""
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    many = [job.examples[n] for n in job.sampler.indices(update)]
    views = [[[*example.prefix, *ending] for ending in example.endings] for example in many]
    head = reference.Head(tensors["head.weight"], tensors["head.bias"])
    family = job.base.decoder.config.model_type
    shape = reference.Shape(job.base.decoder.config.n_head, family == "gpt2")
    decoder = {name: value for name, value in tensors.items() if not name.startswith("head.")}
    extract = job.base.task_tokens.special_tokens.extract
    labels = [example.label for example in many]
    loss = reference.objective(decoder, shape, head, views, labels, kind, extract, 0.5)
    loss.total.backward()
    return loss.total.item(), {name: value.grad.numpy() for name, value in tensors.items()}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("family", ["gpt2", pytest.param("openai-gpt", marks=pytest.mark.slow)])
def test_updates_are_those_of_the_paper(kind: str, family: str, bases, tmp_path) -> None:
    """Loss, schedule, clipping, decay and Adam, in float64 against an independent implementation.

    Passes of at most 60 tokens cut every update into several.
    """
    settings = {"warmup": 0.4, "max_grad_norm": 0.5, "weight_decay": 0.1, "batch_size": 6}
    settings["tokens_per_forward"] = 60
    recipe = jobs.recipe(kind, bases(family), tmp_path, train=15, epochs=2, **settings)
    recipe = jobs.change(recipe, "head", standardize_scores=False)
    job = prepare_finetuning(recipe, recipe.task.build(), create_accelerator("fp32"))
    job.model.double()
    weights = paper_weights(job)
    nothing = {name: np.zeros_like(value) for name, value in weights.items()}
    moments = {name: reference.Moments(zero, zero) for name, zero in nothing.items()}
    updates = range(1, job.sampler.updates + 1)
    clipped = 0
    for step in run_updates(
        job.model,
        job.optimizer,
        updates,
        job.make_microbatches,
        job.settings,
        job.accelerator,
    ):
        loss, slopes = paper_gradients(job, weights, step.number, KINDS[kind].name)
        limited, norm = reference.clip(list(slopes.values()), 0.5)
        clipped += norm > 0.5
        rate = 1e-3 * reference.rate_factor(step.number / len(updates), 0.4)
        for name, slope in zip(slopes, limited, strict=True):
            weights[name], moments[name] = reference.adam(
                weights[name], slope, moments[name], step.number, rate, decay=0.1
            )
        assert step.losses.total.item() == pytest.approx(loss, rel=1e-6)
        assert step.grad_norm.item() == pytest.approx(norm, rel=1e-5)
        assert step.learning_rate == pytest.approx(rate, rel=1e-12)
        for name, value in paper_weights(job).items():
            np.testing.assert_allclose(value, weights[name], atol=2e-8, rtol=1e-6, err_msg=name)
    assert (job.sampler.updates, clipped > 0) == (6, True)
