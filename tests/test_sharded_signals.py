"""Signals to shards: a whole state within one forward pass, which all processes make together."""

import functools
import os
import shutil
import signal
from contextlib import contextmanager

import jobs
import pytest
import warm
from together import ODD, SHARDS

import finetune.evaluation
import finetune.loop
from finetune import checkpoint
from finetune.loop import Step
from finetune.model import TaskModel
from finetune.news import Interrupted
from finetune.run import Run
from finetune.training import events

MANY = {**ODD, "batch_size": 11, "tokens_per_forward": 40, "head_dropout": 0.1}
"""Two updates an epoch, each of several passes, and with random numbers."""


def train_and_note(kind, at, number, recipe, run) -> int:
    """Trains in shards; every process notes its passes, updates and saves in order.

    In the pass `at` of that kind (pass; look, which is one of an evaluation; trial and glance,
    which a process makes alone before those) the second process alone gets a signal, and the
    first state after it is copied.
    """
    forward, save, rank, made = TaskModel.forward, Run.save, os.environ["RANK"], []

    def note(word):
        made.append(word)
        run.with_suffix(f".notes.{rank}").write_text("\n".join(made))

    @contextmanager
    def rehearse_and_say_so(model, **options):
        with rehearse(model, **options):
            alone.append(1)
            yield
            alone.pop()

    def watched(self, batch, lm=False):
        kinds = ("trial", "pass") if self.training else ("glance", "look")
        note(kinds[not alone])
        if rank == "1" and (made[-1], made.count(kind)) == (kind, at):
            os.kill(os.getpid(), number)
        return forward(self, batch, lm)

    def save_and_copy(self, update, tensors, facts):
        note(f"save {update}")
        save(self, update, tensors, facts)
        if made.count(kind) == at and not run.with_suffix(".copy").exists():
            self._saver.wait()
            shutil.copytree(run, run.with_suffix(".copy"))

    TaskModel.forward, Run.save = watched, save_and_copy
    rehearse, alone = finetune.loop.rehearse, []
    finetune.loop.rehearse = finetune.evaluation.rehearse = rehearse_and_say_so
    try:
        for event in events(recipe, run, resume=True):
            if isinstance(event, Step):
                note(f"update {event.number}")
    except Interrupted as interrupted:
        return interrupted.exit_code
    return 0


def train_shards(recipe, run, *, kind="pass", at=0, number=signal.SIGUSR1, code=0, count=2):
    """What each process noted, once all have ended with the expected code."""
    output, how = run.with_suffix(".output"), functools.partial(train_and_note, kind, at, number)
    children = warm.start_many(count, how, recipe, run, environment=SHARDS, output=output)
    codes = warm.join(children)
    told = "\n".join(path.read_text() for path in sorted(run.parent.glob("*.[0-9]")))
    assert codes == [code] * count, told
    return [run.with_suffix(f".notes.{n}").read_text().split("\n") for n in range(count)]


@pytest.fixture(scope="module")
def recipe(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return jobs.recipe("multiple_choice", bases("gpt2"), folder, **MANY)


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """A run without signals, and what its processes noted."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    return run, train_shards(recipe, run)


def test_all_make_as_many_passes(undisturbed, recipe, tmp_path) -> None:
    """Otherwise they could not agree before each; also where three share 22 rows and look at 10."""
    for notes in (undisturbed[1], train_shards(recipe, tmp_path / "three", count=3)):
        made = [[word for word in own if word[:4] in ("pass", "look", "upda")] for own in notes]
        assert made[1:] == made[:-1]
        assert made[0].index("update 1") > 3
        assert 0 < notes[0].count("trial") < made[0].count("pass") / 3
        assert made[0].count("look") > 2


@pytest.mark.parametrize("at", [pytest.param(2, marks=pytest.mark.slow), 9])
def test_a_wish_to_save_is_done_after_the_pass(at, recipe, undisturbed, tmp_path) -> None:
    """By all, though one heard it, in the midst of an update; nothing that is computed changes."""
    whole, (quiet, _) = undisturbed
    run = tmp_path / "run"
    notes, _ = train_shards(recipe, run, at=at)
    moment = [n for n, word in enumerate(notes) if word == "pass"][at - 1] + 1
    done = sum(word.startswith("update") for word in notes[:moment])
    assert notes[moment] == f"save {done}"
    assert notes[moment + 1] == "pass"
    assert notes[:moment] + notes[moment + 1 :] == quiet
    jobs.assert_same(run, whole)
    copy = run.with_suffix(".copy")
    state, warnings = checkpoint.latest(copy / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (done, [])
    train_shards(recipe, copy)
    jobs.assert_same(copy, whole)


@pytest.mark.parametrize(
    ("number", "code", "kind", "at"),
    [
        pytest.param(signal.SIGTERM, 143, "trial", 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "pass", 1, marks=pytest.mark.slow),
        (signal.SIGTERM, 143, "pass", 9),
        pytest.param(signal.SIGINT, 130, "pass", 8, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_update_of_all(
    number, code, kind, at, recipe, undisturbed, tmp_path
) -> None:
    """After that very pass, with the state of the update before; the resumed run ends the same."""
    run = tmp_path / "run"
    notes = train_shards(recipe, run, kind=kind, at=at, number=number, code=code)
    assert [own.count(kind) for own in notes] == [at, at]
    done = sum(word.startswith("update") for word in notes[0])
    assert notes[0][-2:] == [kind, f"save {done}"]
    assert notes[1][-1] == kind
    state, warnings = checkpoint.latest(run / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (done, [])
    train_shards(recipe, run)
    jobs.assert_same(run, undisturbed[0])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 143)])
def test_a_signal_is_heard_in_an_evaluation(number, code, recipe, undisturbed, tmp_path) -> None:
    run, at = tmp_path / "run", 2
    notes, other = train_shards(recipe, run, kind="look", at=at, number=number, code=code)
    looked = [n for n, word in enumerate(notes) if word == "look"][at - 1]
    done = sum(word.startswith("update") for word in notes[:looked])
    assert notes[looked + 1] == f"save {done}"
    if code:
        assert len(notes) == looked + 2
        assert other[-1] == "look"
        train_shards(recipe, run)
    jobs.assert_same(run, undisturbed[0])
