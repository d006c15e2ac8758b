"""The noise scale of saved weights, against the gradients of single examples."""

import numpy as np
import pytest

from finetune.training.noise_measurement import find_checkpoints, measure_batches, restore_weights
from finetune.training.noise_scale import MomentAverages
from task_formats import UsageError
from tests.support import jobs
from tests.training.test_noise_training import example_gradients


@pytest.fixture(scope="module")
def recipe(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    settings = {"train": 60, "lm_coefficient": 0, "learning_rate": 1e-5}
    recipe = jobs.recipe("score", bases("gpt2"), folder, **settings)
    return jobs.change(recipe, "head", standardize_scores=False)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """A finished run with checkpoints of updates 15 and 16."""
    often = jobs.change(recipe, "train", checkpoint_updates=5, keep_checkpoints=2)
    return jobs.train(often, tmp_path_factory.mktemp("runs") / "run")


def test_measured_moments_are_those_of_single_examples(recipe, run):
    job = jobs.prepare(recipe)
    first, last = find_checkpoints(run)
    assert [restore_weights(job, path) for path in (first, last)] == [15, 16]
    head, saved = job.model.head.state_dict(), jobs.weights(run)
    assert jobs.distance(head, {name: saved[name] for name in head}) < 1e-6
    averages, losses = MomentAverages(decay=1), []
    for batch in measure_batches(job, 60, 12):
        averages.add(batch.moments)
        losses.append(batch.loss)
    assert all(p.grad is None for p in job.model.parameters())
    gradients = example_gradients(job, range(60))
    mean = gradients.mean(0)
    noise = np.square(gradients - mean).sum() / 59
    assert averages.moments.noise == pytest.approx(noise, rel=0.05)
    assert averages.moments.signal == pytest.approx(mean @ mean - noise / 60, rel=0.1)


def test_measuring_repeats_and_leaves_the_weights(recipe):
    noisy = jobs.change(recipe, "base", dropout=0.1)
    job = jobs.prepare(noisy)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    first, second = ([*measure_batches(job, 3, 8, seed)] for seed in (0, 0))
    assert first == second
    assert first != [*measure_batches(job, 3, 8, seed=1)]
    assert jobs.distance(before, job.model.state_dict()) == 0


@pytest.mark.parametrize(("batch_size", "measured"), [(1, 2), (16, 16), (100, 60)])
def test_batches_are_as_large_as_those_of_the_run(batch_size, measured, recipe):
    """But no smaller than two examples, and no larger than the data."""
    job = jobs.prepare(jobs.change(recipe, "train", batch_size=batch_size))
    assert [*measure_batches(job, 2)] == [*measure_batches(job, 2, measured)]


def test_a_batch_larger_than_the_data_is_refused(recipe):
    with pytest.raises(UsageError, match="a batch of 61 is larger than the 60 training examples"):
        next(measure_batches(jobs.prepare(recipe), 2, 61))
