"""A stopped run continues to the same bits, wherever it was stopped."""

import itertools
import json
import random
import shutil
import signal
from pathlib import Path

import pytest

import finetune
import finetune.data.splits
import finetune.training.finetuning
from finetune.models.task_model import TaskModel
from finetune.training.events import Evaluated, Finished, Notice, Started
from finetune.training.finetuning import events
from finetune.training.loop import Step, count_tokens
from finetune.training.progress import TrainingProgress
from task_formats import UsageError
from tests.support import interruptions, jobs

JOB = ("multiple_choice", jobs.NOISY)
UPDATES = 6
"""Of that job: two epochs of 8, 8 and 4 rows, evaluated after updates 2, 3, 5 and 6."""


# -- a signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("update", range(1, UPDATES + 1))
def test_a_run_goes_on_from_any_update(update: int, job, undisturbed, tmp_path) -> None:
    """Mid-epoch, at the end of one, and between an update and its evaluation."""
    run = tmp_path / "run"
    stop = jobs.stop_at(job, run, update)
    assert (stop.folder, stop.update, stop.exit_code) == (run, update, 143)
    assert not (run / "result.json").exists()
    seen = list(events(job, run, resume=True))
    assert [event.done for event in seen if isinstance(event, Started)] == [update]
    assert [event.number for event in seen if isinstance(event, Step)] == [
        *range(update + 1, UPDATES + 1)
    ]
    jobs.assert_same(run, undisturbed)


def test_a_run_can_be_stopped_again_and_again(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    for update, number in zip((1, 2, 4, 5), itertools.cycle((signal.SIGINT, signal.SIGTERM))):
        assert jobs.stop_at(job, run, update, number).exit_code == 128 + number
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)
    rows = jobs.rows("multiple_choice", 7, seed=9)
    assert finetune.load(run).predict(rows) == finetune.load(undisturbed).predict(rows)


def test_closing_the_generator_leaves_a_run_that_goes_on(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    watched = events(jobs.change(job, "train", checkpoint_updates=1), run)
    for event in watched:
        if isinstance(event, Step) and event.number == 5:
            break
    watched.close()
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)


def test_a_finished_run_is_not_trained_again(job, undisturbed) -> None:
    seen = list(events(job, undisturbed, resume=True))
    assert [type(event) for event in seen] == [Notice, Finished]
    assert seen[0].text.endswith("is already finished: nothing was trained")
    assert seen[-1].result.scores == jobs.result(undisturbed)["scores"]


def test_a_result_of_an_older_version_has_no_baseline(job, undisturbed, tmp_path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    result = json.loads((undisturbed / "result.json").read_text())
    assert result.pop("majority")
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert list(events(job, tmp_path / "run", resume=True))[-1].result.majority == {}


# -- a kill ------------------------------------------------------------------------------------


def test_a_killed_run_ends_in_the_same_bits(job, undisturbed, tmp_path) -> None:
    """6 kills; benchmarks/interruptions.py makes hundreds."""
    draw, kills, begun = random.Random(0), 0, itertools.count()
    often = jobs.change(job, "train", checkpoint_updates=1)
    while kills < 6:
        run = tmp_path / f"{next(begun)}"
        while code := interruptions.run_interrupted(
            often, run, interruptions.draw_moment(draw, UPDATES), signal.SIGKILL
        ):
            assert code == -signal.SIGKILL
            kills += 1
        jobs.assert_same(run, undisturbed)


def test_after_a_kill_between_model_and_checkpoint_the_result_names_the_model(
    job, tmp_path, monkeypatch
) -> None:
    """The resumed run scores otherwise, as on another device: update 3 is the best no more."""
    run, values = tmp_path / "run", {2: 0.5, 3: 0.9}
    record = TrainingProgress.record_evaluation
    monkeypatch.setattr(
        TrainingProgress,
        "record_evaluation",
        lambda self, update, _: record(self, update, values.get(update, 0.0)),
    )
    jobs.stop_at(job, run, 3)
    watched = events(job, run, resume=True)
    assert next(e.update for e in watched if isinstance(e, Evaluated) and e.best) == 3
    watched.close()
    saved = jobs.weights(run)
    del values[3]
    seen = [event.text for event in events(job, run, resume=True) if isinstance(event, Notice)]
    assert jobs.distance(jobs.weights(run), saved) == 0
    assert jobs.result(run)["update"] == 3
    assert any("the best model is that of update 3" in text for text in seen)
    assert finetune.load(run).evaluate() == jobs.result(run)["scores"]["evaluate"]


# -- a mistake ---------------------------------------------------------------------------------


MISTAKES = {
    "a missing file": {"data": {"evaluate": "missing.jsonl"}},
    "a missing base": {"base": {"path": "./missing"}},
    "too few rows": {"train": {"batch_size": 1000, "incomplete_batch": "drop"}},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_nothing_with_overwrite(mistake, job, undisturbed, tmp_path) -> None:
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    wrong = job
    for section, changes in MISTAKES[mistake].items():
        wrong = jobs.change(wrong, section, **changes)
    with pytest.raises(UsageError):
        finetune.train(wrong, run, overwrite=True)
    jobs.assert_same(run, undisturbed)
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert finetune.load(run).evaluate() == jobs.result(run)["scores"]["evaluate"]
    jobs.train(job, run, overwrite=True)
    jobs.assert_same(run, undisturbed)


# -- another machine, another recipe, other data -------------------------------------------------


def test_another_recipe_is_refused(job, tmp_path) -> None:
    run = tmp_path / "run"
    jobs.stop_at(job, run, 2)
    for part, values, named in [
        ("train", {"learning_rate": 0.5}, r"another train\.learning_rate: 0\.001, not 0\.5"),
        ("train", {"seed": 1}, r"another train\.seed: 42, not 1"),
        ("base", {"dropout": 0.2}, r"another base\.dropout"),
        ("task", {"metrics": ("macro_f1",)}, r"another task\.metrics"),
    ]:
        with pytest.raises(UsageError, match=named):
            finetune.train(jobs.change(job, part, **values), run, resume=True)


def test_settings_that_do_not_change_results_may_change_on_resume(
    job, bases, tmp_path, monkeypatch
) -> None:
    """And they take effect, such as smaller passes when memory ran out."""
    quiet = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epsilon=1e-3)
    whole = jobs.train(quiet, tmp_path / "whole")
    run = tmp_path / "run"
    jobs.stop_at(quiet, run, 4)
    smaller = {"tokens_per_forward": 70, "layout": "shared", "checkpoint_updates": 1}
    forward, read = TaskModel.forward, []

    def watched(self, batch, lm=False):
        read.append(count_tokens(batch) if self.training else 0)
        return forward(self, batch, lm)

    monkeypatch.setattr(TaskModel, "forward", watched)
    jobs.train(jobs.change(quiet, "train", **smaller), run, resume=True)
    assert 0 < max(read) <= 70
    assert jobs.distance(jobs.weights(whole), jobs.weights(run)) < 1e-5


def test_other_versions_are_reported(job, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    jobs.stop_at(job, run, 2)
    monkeypatch.setattr(finetune.checkpointing.provenance, "_version", lambda _: "0.0")
    notices = [e.text for e in events(job, run, resume=True) if isinstance(e, Notice)]
    assert len(notices) == 8
    assert all(text.endswith("is 0.0") for text in notices)


def test_nothing_to_resume_is_reported(job, tmp_path) -> None:
    first = next(iter(events(job, tmp_path / "run", resume=True)))
    assert "nothing to resume" in first.text


@pytest.mark.parametrize("name", ["tensors.safetensors", "metadata.json", "manifest.json"])
def test_the_checkpoint_before_a_damaged_one_is_used(name, job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    jobs.stop_at(jobs.change(job, "train", checkpoint_updates=1), run, 5)
    broken = run / "checkpoints" / "update-00000005" / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 4
    broken.write_bytes(content)
    seen = list(events(job, run, resume=True))
    (warning,) = [event.text for event in seen if isinstance(event, Notice)]
    assert str(broken.parent) in warning
    assert "this checkpoint is not used" in warning
    assert [event.done for event in seen if isinstance(event, Started)] == [4]
    jobs.assert_same(run, undisturbed)


def test_without_a_usable_checkpoint_the_run_starts_over(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    jobs.stop_at(jobs.change(job, "train", checkpoint_updates=1), run, 5)
    for path in run.glob("checkpoints/*/tensors.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    seen = list(events(job, run, resume=True))
    assert len([event for event in seen if isinstance(event, Notice)]) == 2
    assert [event.done for event in seen if isinstance(event, Started)] == [0]
    assert len([event for event in seen if isinstance(event, Evaluated)]) == 4
    jobs.assert_same(run, undisturbed)
