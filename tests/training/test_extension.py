"""A run that is resumed with more epochs."""

import shutil

import pytest

from finetune.cli import main
from finetune.training.events import Notice, Started
from finetune.training.finetuning import events
from task_formats import UsageError
from tests.support import jobs

JOB = ("entailment", {**jobs.NOISY, "schedule": "linear", "warmup": 0})
LONGER = "trained longer: 4 epochs instead of 2. The remaining updates have the learning rates"


def longer(recipe, epochs=4):
    return jobs.change(recipe, "train", epochs=epochs)


def rates(run) -> list[float]:
    return [event["learning_rate"] for event in jobs.log(run) if event["event"] == "train"]


def test_at_a_constant_rate_a_longer_run_equals_one_planned_so(job, tmp_path) -> None:
    job = jobs.change(job, "train", schedule="constant")
    whole = jobs.train(longer(job), tmp_path / "whole")
    run = jobs.train(job, tmp_path / "run")
    jobs.train(longer(job), run, resume=True)
    jobs.assert_same(whole, run)


def test_the_remaining_updates_have_the_rates_of_the_longer_run(job, undisturbed, tmp_path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    seen = list(events(longer(job), run, resume=True))
    assert any(isinstance(e, Notice) and e.text.startswith(LONGER) for e in seen)
    assert [(e.done, e.updates) for e in seen if isinstance(e, Started)] == [(6, 12)]
    planned = [1e-3 * (1 - n / 12) for n in range(12)]
    assert rates(run) == pytest.approx([*rates(undisturbed), *planned[6:]])


def test_a_longer_run_is_the_same_each_time_and_resumes(job, undisturbed, tmp_path) -> None:
    one, other = (shutil.copytree(undisturbed, tmp_path / name) for name in ("one", "other"))
    jobs.train(longer(job), one, resume=True)
    jobs.stop_at(longer(job), other, 9)
    assert not (other / "result.json").exists()
    jobs.train(longer(job), other, resume=True)
    jobs.assert_same(one, other)


def test_an_interrupted_run_can_be_made_longer(job, tmp_path) -> None:
    run = tmp_path / "run"
    jobs.stop_at(job, run, 3)
    seen = list(events(longer(job), run, resume=True))
    assert [(e.done, e.updates) for e in seen if isinstance(e, Started)] == [(3, 12)]


def test_a_run_cannot_be_made_shorter(job, tmp_path) -> None:
    run = tmp_path / "run"
    jobs.stop_at(longer(job), run, 3)
    with pytest.raises(UsageError, match=r"has 4 epochs, and 2 are fewer"):
        jobs.train(job, run, resume=True)


def test_what_stands_in_the_way_leaves_the_finished_run(job, undisturbed, tmp_path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(UsageError, match=r"another train\.learning_rate"):
        jobs.train(jobs.change(longer(job), "train", learning_rate=0.5), run, resume=True)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UsageError, match=r"has no checkpoint from which"):
        jobs.train(longer(job), run, resume=True)
    assert jobs.result(run) == jobs.result(undisturbed)


def test_the_command_makes_a_run_longer(undisturbed, tmp_path, capsys) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    assert main(["resume", str(run), "--epochs", "3"]) == 0
    out = capsys.readouterr().out
    assert "note: trained longer: 3 epochs instead of 2" in out
    assert "resuming after update 6" in out
    assert "Trained 9 updates" in out
