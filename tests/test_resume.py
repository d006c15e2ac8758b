"""A run that was stopped goes on to the very same bits, wherever it was stopped."""

import itertools
import os
import random
import shutil
import signal
from pathlib import Path

import jobs
import pytest
import torch
import torture

import finetune
import finetune.job
from finetune import checkpoint
from finetune.loop import Step, tokens_read
from finetune.model import TaskModel
from finetune.news import Evaluated, Finished, Interrupted, Notice, Started
from finetune.recipe import Recipe
from finetune.run import Run
from finetune.training import events
from task_formats import UsageError

NOISY = {"head_dropout": 0.1, "base_part": {"dropout": 0.1}, "evaluations": 2}
UPDATES = 6
"""Of the job below: two epochs of 8, 8 and 4 rows, evaluated after updates 2, 3, 5 and 6."""


@pytest.fixture(scope="module")
def job(bases, tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("resume")
    return jobs.recipe("multiple_choice", bases("gpt2"), folder, **NOISY)


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory) -> Path:
    return jobs.train(job, tmp_path_factory.mktemp("undisturbed") / "run")


def stop_at(recipe: Recipe, run: Path, update: int, number: int = signal.SIGTERM) -> Interrupted:
    """Trains until an update is done, and then asks this process to end."""

    def watch() -> None:
        for event in events(recipe, run, resume=True):
            if isinstance(event, Step) and event.number == update:
                os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as stop:
        watch()
    return stop.value


# -- a signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("update", range(1, UPDATES + 1))
def test_a_run_goes_on_from_any_update(update: int, job, undisturbed, tmp_path) -> None:
    """Mid-epoch, at the end of one, and between an update and its evaluation."""
    run = tmp_path / "run"
    stop = stop_at(job, run, update)
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
        assert stop_at(job, run, update, number).exit_code == 128 + number
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)
    rows = jobs.rows("multiple_choice", 7, seed=9)
    assert finetune.load(run).predict(rows) == finetune.load(undisturbed).predict(rows)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("left", [1, 3, 7])
def test_a_signal_ends_an_update_between_two_passes(left, number, bases, tmp_path, monkeypatch):
    """The state is that of the update before, or of none; the passes made so far are forgotten."""
    small = {"tokens_per_forward": 60, "head_dropout": 0.1, "base_part": {"dropout": 0.1}}
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path / "data", **small)
    whole, run = jobs.train(recipe, tmp_path / "whole"), tmp_path / "run"
    forward, count = TaskModel.forward, itertools.count(1)
    passes: list[int] = []

    def interrupt(self, batch, lm=False):
        if self.training:
            passes.append(next(count))
            if passes[-1] == left:
                os.kill(os.getpid(), number)
        return forward(self, batch, lm)

    with monkeypatch.context() as patch:
        patch.setattr(TaskModel, "forward", interrupt)
        with pytest.raises(Interrupted) as stop:
            list(events(recipe, run))
    assert stop.value.exit_code == 128 + number
    assert passes == [*range(1, left + 1)]  # not one pass more
    state, warnings = checkpoint.latest(run / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (stop.value.update, [])
    jobs.train(recipe, run, resume=True)
    jobs.assert_same(run, whole)


@pytest.mark.parametrize("evaluation", [1, 4, 5])
def test_a_signal_ends_an_evaluation(evaluation, job, undisturbed, tmp_path, monkeypatch) -> None:
    """The fifth is that of the saved model, after all updates."""
    read, count = finetune.job.read_rounds, itertools.count(1)

    def interrupt(*arguments):
        number = next(count)
        for found in read(*arguments):
            if number == evaluation:
                os.kill(os.getpid(), signal.SIGTERM)
            yield found

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finetune.job, "read_rounds", interrupt)
        with pytest.raises(Interrupted) as stop:
            finetune.train(job, run)
    assert stop.value.update == [2, 3, 5, 6, 6][evaluation - 1]
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)


def test_a_wish_to_save_saves_and_goes_on(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    saved = []
    for event in events(job, run):
        if isinstance(event, Step):
            saved.append(checkpoint.latest(run / "checkpoints")[0])
            if event.number == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert saved[0] is None
    assert saved[-1].facts["progress"]["update"] >= 1
    jobs.assert_same(run, undisturbed)


def test_a_state_is_saved_between_two_passes(job, tmp_path, monkeypatch) -> None:
    """That of the update before; the update goes on with the gradients that it has."""
    little = jobs.change(job, "train", tokens_per_forward=60)
    undisturbed, run, other = (tmp_path / name for name in ("undisturbed", "run", "other"))
    jobs.train(little, undisturbed)
    forward, save, passes, saved = TaskModel.forward, Run.save, [], []

    def watched(self, batch, lm=False):
        if self.training:
            passes.append(batch)
            if len(passes) == 2 and len(steps) == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
        return forward(self, batch, lm)

    def save_and_copy(self, update, tensors, facts):
        saved.append((update, len(passes)))
        save(self, update, tensors, facts)
        if update == 4:
            self._saver.wait()
            shutil.copytree(run, other)

    monkeypatch.setattr(TaskModel, "forward", watched)
    monkeypatch.setattr(Run, "save", save_and_copy)
    steps = []
    for event in events(little, run):
        if isinstance(event, Step):
            steps.append(event)
            passes.clear()
    # At the end of the first epoch, and after two passes of update 5.
    assert saved[:2] == [(3, 0), (4, 2)]
    jobs.assert_same(run, undisturbed)
    jobs.train(little, other, resume=True)
    jobs.assert_same(other, undisturbed)


def test_a_save_without_memory_is_made_after_the_update(job, tmp_path, monkeypatch) -> None:
    """It is no pass that was too large: the budget stays, and so do the bits."""
    little = jobs.change(job, "train", tokens_per_forward=60)
    whole, run = tmp_path / "whole", tmp_path / "run"
    jobs.train(little, whole)
    forward, save, passes, tried = TaskModel.forward, Run.save, itertools.count(1), []

    def watched(self, batch, lm=False):
        if self.training and next(passes) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(self, batch, lm)

    def save_or_fail(self, update, tensors, facts):
        tried.append(update)
        if update == 0:
            raise torch.OutOfMemoryError("no memory for a copy")
        save(self, update, tensors, facts)

    monkeypatch.setattr(TaskModel, "forward", watched)
    monkeypatch.setattr(Run, "save", save_or_fail)
    jobs.train(little, run)
    assert tried[0] == 0
    assert 1 in tried
    jobs.assert_same(run, whole)


def test_a_state_is_saved_during_an_evaluation(job, undisturbed, tmp_path, monkeypatch) -> None:
    run, saved = tmp_path / "run", []
    read, save = finetune.job.read_rounds, Run.save

    def disturb(*arguments):
        for number, found in enumerate(read(*arguments)):
            if number == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield found

    def note(self, update, tensors, facts):
        saved.append((update, facts["progress"]["evaluated"]))
        save(self, update, tensors, facts)

    monkeypatch.setattr(finetune.job, "read_rounds", disturb)
    monkeypatch.setattr(Run, "save", note)
    jobs.train(job, run)
    # After an update, and before what was being evaluated is known.
    assert [update for update, known in saved if known < update] == [2, 3, 5, 6]
    jobs.assert_same(run, undisturbed)


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
    assert seen[0].text.endswith("is finished already: nothing was trained")
    assert seen[-1].result.scores == jobs.result(undisturbed)["scores"]


# -- a kill ------------------------------------------------------------------------------------


def test_a_killed_run_ends_in_the_same_bits(job, undisturbed, tmp_path) -> None:
    """A short torture, 20 kills; benchmarks/torture.py makes it 200."""
    draw, kills, begun = random.Random(0), 0, itertools.count()
    often = jobs.change(job, "train", checkpoint_updates=1)
    while kills < 20:
        run = tmp_path / f"{next(begun)}"
        while code := torture.strike(
            often, run, torture.draw_moment(draw, UPDATES), signal.SIGKILL
        ):
            assert code == -signal.SIGKILL
            kills += 1
        jobs.assert_same(run, undisturbed)


# -- another machine, another recipe, other data -------------------------------------------------


def test_another_recipe_is_refused(job, tmp_path) -> None:
    run = tmp_path / "run"
    stop_at(job, run, 2)
    for part, values, named in [
        ("train", {"learning_rate": 0.5}, r"another train\.learning_rate: 0\.001, not 0\.5"),
        ("train", {"seed": 1}, r"another train\.seed: 42, not 1"),
        ("base", {"dropout": 0.2}, r"another base\.dropout"),
        ("task", {"metrics": ("macro_f1",)}, r"another task\.metrics"),
    ]:
        with pytest.raises(UsageError, match=named):
            finetune.train(jobs.change(job, part, **values), run, resume=True)


def test_what_does_not_change_the_result_may_differ(job, bases, tmp_path, monkeypatch) -> None:
    """And takes effect: who resumes with smaller passes, for want of memory, gets them."""
    quiet = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epsilon=1e-3)
    whole = jobs.train(quiet, tmp_path / "whole")
    run = tmp_path / "run"
    stop_at(quiet, run, 4)
    smaller = {"tokens_per_forward": 70, "layout": "shared", "checkpoint_updates": 1}
    forward, read = TaskModel.forward, []

    def watched(self, batch, lm=False):
        read.append(tokens_read(batch) if self.training else 0)
        return forward(self, batch, lm)

    monkeypatch.setattr(TaskModel, "forward", watched)
    jobs.train(jobs.change(quiet, "train", **smaller), run, resume=True)
    assert 0 < max(read) <= 70
    assert jobs.distance(jobs.weights(whole), jobs.weights(run)) < 1e-5


def test_changed_data_is_told(job, tmp_path) -> None:
    run, copy = tmp_path / "run", tmp_path / "held-out.jsonl"
    rows = jobs.rows("multiple_choice", 9, seed=1)
    mine = jobs.change(job, "data", evaluate=jobs.write_rows(copy, rows))
    stop_at(mine, run, 2)
    jobs.write_rows(copy, rows[:8])
    notices = [e.text for e in events(mine, run, resume=True) if isinstance(e, Notice)]
    assert [text.split(" was ")[0] for text in notices] == [
        "resumed with other data: evaluate",
        "resumed with other rows: evaluate",
    ]


def test_other_versions_are_told(job, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    stop_at(job, run, 2)
    monkeypatch.setattr(finetune.provenance, "_version", lambda _: "0.0")
    notices = [e.text for e in events(job, run, resume=True) if isinstance(e, Notice)]
    assert len(notices) == 8
    assert all(text.endswith("is 0.0") for text in notices)


def test_nothing_to_resume_is_told(job, tmp_path) -> None:
    first = next(iter(events(job, tmp_path / "run", resume=True)))
    assert "nothing to resume here" in first.text


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "manifest.json"])
def test_the_state_before_a_damaged_one_is_used(name, job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    stop_at(jobs.change(job, "train", checkpoint_updates=1), run, 5)
    broken = run / "checkpoints" / "update-00000005" / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 4
    broken.write_bytes(content)
    seen = list(events(job, run, resume=True))
    (warning,) = [event.text for event in seen if isinstance(event, Notice)]
    assert str(broken) in warning
    assert "this state is not used" in warning
    assert [event.done for event in seen if isinstance(event, Started)] == [4]
    jobs.assert_same(run, undisturbed)


def test_with_every_state_damaged_the_run_starts_anew(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    stop_at(jobs.change(job, "train", checkpoint_updates=1), run, 5)
    for path in run.glob("checkpoints/*/tensors.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    seen = list(events(job, run, resume=True))
    assert len([event for event in seen if isinstance(event, Notice)]) == 2
    assert [event.done for event in seen if isinstance(event, Started)] == [0]
    assert len([event for event in seen if isinstance(event, Evaluated)]) == 4
    jobs.assert_same(run, undisturbed)
