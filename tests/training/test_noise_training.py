"""The gradient noise scale of real updates, in one process and in two, and after a resume."""

import numpy as np
import pytest
import torch

import finetune
from finetune.batching.collate import collate, count_totals
from finetune.batching.sampler import shard_by_length
from finetune.models.losses import objective
from finetune.training.events import Finished, Notice
from finetune.training.finetuning import events
from finetune.training.loop import Step, compute_gradient, run_updates
from finetune.training.noise_scale import MomentAverages, estimate_moments, measure_groups
from tests.support import jobs
from tests.support.processes import ODD, SHARDS, train_in_processes

MEASURED = {"noise_scale": True}


def example_gradients(job, rows):
    """(N, D) gradients of single examples, each the mean loss of an update of one example."""
    found = []
    for n in rows:
        example = [job.examples[n]]
        batch = collate(example, "separate", job.batch_config.pad_id, count_totals(example))
        job.model.zero_grad()
        outputs = job.model(batch, lm=job.settings.lm_coefficient > 0)
        objective(outputs, batch, job.settings.lm_coefficient).total.backward()
        found.append(flat_gradient(job))
    return torch.stack(found).numpy()


def flat_gradient(job):
    return torch.cat([p.grad.flatten() for p in job.model.parameters() if p.grad is not None])


def training_events(run):
    return [event for event in jobs.log(run) if event["event"] == "train"]


def gradient_of_update(job, update=1):
    parameters = [p for p in job.model.parameters() if p.requires_grad]
    arguments = (job.make_microbatches, None, job.settings, job.accelerator)
    job.model.train()
    return compute_gradient(job.model, parameters, update, *arguments)


@pytest.mark.parametrize("kind", ["entailment", "multiple_choice", "score"])
@pytest.mark.parametrize("settings", [{}, {"tokens_per_forward": 60, "layout": "separate"}])
def test_moments_are_those_of_the_gradients_of_single_examples(kind, settings, bases, tmp_path):
    """An update of 7 examples, so that the two groups are unequal."""
    settings = {**settings, **MEASURED, "batch_size": 7, "lm_coefficient": 0}
    recipe = jobs.recipe(kind, bases("gpt2"), tmp_path, **settings)
    job = jobs.prepare(jobs.change(recipe, "head", standardize_scores=False))
    job.model.double()
    found = gradient_of_update(job)
    whole = flat_gradient(job).numpy()
    rows = job.sampler.indices(1)
    groups = shard_by_length(rows, job.lengths, 2)
    parts = [example_gradients(job, group) for group in groups]
    means = [part.mean(0) for part in parts]
    assert sorted(map(len, parts)) == [3, 4]
    np.testing.assert_allclose(whole, np.vstack(parts).mean(0), rtol=1e-6, atol=1e-9)
    assert found.group_norms.sizes == measure_groups([np.ones(len(part)) for part in parts])
    square = sum(len(part) / 7 * mean @ mean for part, mean in zip(parts, means, strict=True))
    assert found.group_norms.square.item() == pytest.approx(square, rel=1e-6)


def test_class_weights_are_weights_of_examples(bases, tmp_path):
    settings = {**MEASURED, "lm_coefficient": 0, "class_weights": {"bad": 4.0}, "batch_size": 20}
    job = jobs.prepare(jobs.recipe("classification", bases("gpt2"), tmp_path, **settings))
    found = gradient_of_update(job).group_norms.sizes
    groups = shard_by_length(job.sampler.indices(1), job.lengths, 2)
    weights = [
        np.array([4.0 if job.examples[n].label == 0 else 1.0 for n in group]) for group in groups
    ]
    assert 4 in np.concatenate(weights)
    assert np.allclose(np.hstack(found), np.hstack(measure_groups(weights)))


@pytest.mark.parametrize("stratify", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_many_updates_estimate_the_noise_scale_of_the_data(stratify, bases, tmp_path):
    """Weights held still, 200 updates of 12 of 60 examples, against all gradients.

    In stratified updates the noise is that within classes, about: groups of 6 cannot have exact
    shares of each class.
    """
    settings = {**MEASURED, "batch_size": 12, "epochs": 40, "lm_coefficient": 0}
    settings["stratify"] = stratify
    job = jobs.prepare(jobs.recipe("entailment", bases("gpt2"), tmp_path, train=60, **settings))
    averages = MomentAverages(decay=1)
    for update in range(1, 201):
        square, sizes = gradient_of_update(job, update).group_norms
        big = float(flat_gradient(job).square().sum())
        averages.add(estimate_moments(float(square), big, sizes))
    gradients = example_gradients(job, range(60))
    mean = gradients.mean(0)
    noise = np.square(gradients - mean).sum() / 59
    if stratify:
        labels = job.examples.labels
        classes = [gradients[labels == label] for label in (0, 1)]
        inside = [np.square(part - part.mean(0)).sum() / (len(part) - 1) for part in classes]
        noise = np.average(inside, weights=[len(part) for part in classes])
    # Updates draw without replacement: the estimate of |G|² is that of a larger population.
    signal = mean @ mean - noise / 60
    found = averages.moments
    assert found.noise == pytest.approx(noise, rel=0.1 if stratify else 0.05)
    assert found.signal == pytest.approx(signal, rel=0.1, abs=noise / 100 if stratify else 0)


@pytest.mark.parametrize("part", [{}, {"lora": {"rank": 2}}])
def test_measuring_does_not_change_the_training(part, bases, tmp_path):
    """With weights that no loss reads, and with frozen ones; to rounding."""
    settings = {"lm_coefficient": 0, "base_part": part, "epsilon": 1e-3}
    recipe = jobs.recipe("entailment", bases("llama"), tmp_path / "data", **settings)
    plain = jobs.train(recipe, tmp_path / "plain")
    measured = jobs.train(jobs.change(recipe, "train", noise_scale=True), tmp_path / "measured")
    assert jobs.distance(jobs.weights(plain), jobs.weights(measured)) < 1e-6
    updates, others = training_events(plain), training_events(measured)
    for one, other in zip(updates, others, strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
        assert other.keys() - one.keys() == {"gradient_noise", "gradient_signal", "noise_scale"}
    assert jobs.result(plain)["noise_scale"] is None


def test_the_log_holds_the_moments_and_the_running_noise_scale(bases, tmp_path):
    settings = {**MEASURED, "epochs": 4, "learning_rate": 1e-5}
    recipe = jobs.recipe("score", bases("gpt2"), tmp_path / "data", **settings)
    # Scores far from 0 give a gradient that is known after a few updates.
    recipe = jobs.change(recipe, "head", standardize_scores=False)
    seen = list(events(recipe, tmp_path / "run"))
    logged = training_events(tmp_path / "run")
    averages, scales = MomentAverages(), []
    for event in logged:
        averages.add((event["gradient_noise"], event["gradient_signal"]))
        scale = averages.noise_scale()
        scales.append(scale and scale.value)
    assert [event["noise_scale"] for event in logged] == scales
    steps = [event.noise_scale for event in seen if isinstance(event, Step)]
    assert [scale and scale.value for scale in steps] == scales
    assert scales[-1] is not None
    result = seen[-1].result
    assert result.noise_scale == averages.noise_scale()
    # As it is read back from a finished run.
    again = list(events(recipe, tmp_path / "run", resume=True))
    saved = again[-1].result.noise_scale
    assert isinstance(again[-1], Finished)
    assert saved == result.noise_scale


def test_an_unknown_noise_scale_is_said(bases, tmp_path):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **MEASURED, train=8)
    recipe = jobs.change(recipe, "train", epochs=1)
    seen = list(events(recipe, tmp_path / "run"))
    assert any(isinstance(e, Notice) and "noise scale is not known" in e.text for e in seen)
    assert seen[-1].result.noise_scale is None


def test_a_skipped_update_does_not_count(bases, tmp_path, monkeypatch):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **MEASURED)

    def with_a_nonfinite_update(*arguments):
        for step in run_updates(*arguments):
            bad = torch.tensor(float("nan"))
            yield (
                step._replace(nonfinite=torch.ones(()), grad_norm=bad)
                if (step.number == 2)
                else step
            )

    monkeypatch.setattr("finetune.training.runner.run_updates", with_a_nonfinite_update)
    finetune.train(recipe, tmp_path / "run")
    logged = training_events(tmp_path / "run")
    assert logged[1]["gradient_noise"] is None
    averages = MomentAverages()
    for event in logged[:1] + logged[2:]:
        averages.add((event["gradient_noise"], event["gradient_signal"]))
    scale = averages.noise_scale()
    assert logged[-1]["noise_scale"] == (scale and scale.value)


def test_an_update_of_one_example_is_not_measured(bases, tmp_path):
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path, **MEASURED, batch_size=1)
    assert gradient_of_update(jobs.prepare(recipe)).group_norms is None


def test_a_stopped_run_resumes_bit_equal(bases, tmp_path):
    """With dropout, and with the averages; states are centered, and updates stratified."""
    settings = {**jobs.NOISY, **MEASURED, "stratify": True}
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **settings)
    recipe = jobs.change(recipe, "head", center_states=True)
    whole = jobs.train(recipe, tmp_path / "whole")
    jobs.stop_at(recipe, tmp_path / "run", 3)
    jobs.train(recipe, tmp_path / "run", resume=True)
    jobs.assert_same(tmp_path / "run", whole)


def test_a_run_goes_on_with_and_without_measuring(bases, tmp_path):
    """Also from checkpoints of versions that measured nothing."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    jobs.stop_at(recipe, tmp_path / "run", 2)
    jobs.train(jobs.change(recipe, "train", noise_scale=True), tmp_path / "run", resume=True)
    logged = training_events(tmp_path / "run")
    assert ["noise_scale" in event for event in logged] == [False] * 2 + [True] * 4


def noise_of(run):
    logged = training_events(run)
    assert ["noise_scale" in event for event in logged] == 2 * [True, True, True, False]
    names = ("gradient_noise", "gradient_signal")
    return [event[name] for event in logged for name in names if name in event]


def test_two_processes_measure_what_two_groups_of_one_do(bases, tmp_path):
    """Updates of 7 rows and of 1, where the second process has none."""
    recipe = jobs.recipe("score", bases("gpt2"), tmp_path / "data", **ODD, **MEASURED)
    one = jobs.train(recipe, tmp_path / "one")
    two = train_in_processes(2, recipe, tmp_path / "two")
    assert noise_of(one) == pytest.approx(noise_of(two), rel=1e-3)
    assert jobs.distance(jobs.weights(one), jobs.weights(two)) < 1e-5


def test_shards_measure_what_whole_weights_do(bases, tmp_path):
    settings = {**ODD, **MEASURED, "stratify": True}
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **settings)
    recipe = jobs.change(recipe, "head", center_states=True)
    one = jobs.train(recipe, tmp_path / "one")
    shards = train_in_processes(2, recipe, tmp_path / "shards", environment=SHARDS)
    assert noise_of(one) == pytest.approx(noise_of(shards), rel=1e-3)
    assert jobs.distance(jobs.weights(one), jobs.weights(shards)) < 1e-5
