"""`gptft estimate`: counts that equal those of the run, and times that a trial measured."""

import pytest

from finetune.cli.commands.estimate import describe
from finetune.recipe.schema import LoraConfig
from finetune.training.estimate import Trial, estimate
from finetune.training.events import Finished, Started
from finetune.training.finetuning import events
from tests.support import jobs

JOB = ("multiple_choice", {})


def test_counts_are_those_of_the_run(job, tmp_path):
    found = estimate(job, seconds=0)
    seen = list(events(job, tmp_path / "run"))
    [started] = [event for event in seen if isinstance(event, Started)]
    assert found.started == started
    [result] = [event.result for event in seen if isinstance(event, Finished)]
    assert found.tokens.per_epoch * job.train.epochs == result.tokens
    assert found.updates_per_epoch * job.train.epochs == result.updates
    assert found.tokens.longest <= job.train.max_tokens


def test_memory_is_counted_by_part(job):
    full = estimate(job, seconds=0)
    assert full.memory.weights == 4 * full.parameters
    assert full.memory.gradients == 4 * full.started.parameters
    assert full.memory.optimizer == 2 * full.memory.gradients
    adapted = estimate(jobs.change(job, "base", lora=LoraConfig(rank=2)), seconds=0)
    assert adapted.parameters > full.parameters
    assert adapted.memory.gradients < full.memory.gradients / 2


def test_the_trial_is_as_long_as_asked_and_gives_the_time_of_an_epoch(job):
    job = jobs.change(job, "train", epochs=10_000)
    found = estimate(job, seconds=0.3)
    assert 0.1 < found.trial.seconds < 5
    assert found.trial.updates >= 1
    assert found.seconds_per_epoch == pytest.approx(
        found.tokens.per_epoch * found.trial.seconds / found.trial.tokens
    )


def test_a_run_of_one_update_is_measured_by_that_update(job):
    job = jobs.change(job, "train", batch_size=64, epochs=1)
    assert estimate(job, seconds=5).trial.updates == 1


def test_the_table_says_what_is_trained_and_how_long_it_takes(job):
    found = estimate(job, seconds=0)._replace(trial=Trial(10, 2000, 4.0))
    rows = dict(describe(found))
    assert rows["parameters"] == f"{found.parameters:,}, all trained"
    assert rows["speed"] == "500 tokens/s in 10 updates of 4.0 s"
    assert rows["updates"] == "6 (2 epochs of 3)"
