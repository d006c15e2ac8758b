"""Signals to a run: a checkpoint is saved and nothing is lost."""

import itertools
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

import finetune
import finetune.data.splits
import finetune.training.finetuning
from finetune.checkpointing import checkpoint
from finetune.checkpointing.run_folder import RunFolder
from finetune.distributed import signals
from finetune.training.events import Interrupted
from finetune.training.finetuning import events
from finetune.training.loop import Step
from tests.support import jobs

JOB = ("multiple_choice", jobs.NOISY)
"""Two epochs of 8, 8 and 4 rows, evaluated after updates 2, 3, 5 and 6."""


@pytest.mark.parametrize("evaluation", [1, 4, 5])
def test_a_signal_ends_an_evaluation(evaluation, job, undisturbed, tmp_path, monkeypatch) -> None:
    """The fifth is that of the saved model, after all updates."""
    read, count = finetune.training.finetuning.compute_logits, itertools.count(1)

    def interrupt(*arguments):
        number = next(count)
        for found in read(*arguments):
            if number == evaluation:
                os.kill(os.getpid(), signal.SIGTERM)
            yield found

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(finetune.training.finetuning, "compute_logits", interrupt)
        with pytest.raises(Interrupted) as stop:
            finetune.train(job, run)
    assert stop.value.update == [2, 3, 5, 6, 6][evaluation - 1]
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_preparation_of_data(
    number, job, undisturbed, tmp_path, monkeypatch
) -> None:
    """At once; the same command starts over, and keeps earlier checkpoints."""
    run, seen = tmp_path / "run", []

    def note(example):
        seen.append(example)
        if len(seen) == 3:
            os.kill(os.getpid(), number)
        return example

    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    for wanted, options in ((0, {}), (2, {"resume": True})):
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(finetune.data.splits, "read_examples", jobs.watch_examples(note))
            with pytest.raises(Interrupted, match="preparing data") as stop:
                list(events(job, run, **options))
        assert (stop.value.update, stop.value.exit_code) == (None, 128 + number)
        assert len(seen) == 3
        assert not [*(tmp_path / "cache").glob("*")]
        state, _ = checkpoint.load_latest_checkpoint(run / "checkpoints")
        assert (state.metadata["progress"]["update"] if state else 0) == wanted
        if not options:
            jobs.stop_at(job, run, 2)
            shutil.rmtree(tmp_path / "cache")
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)


def test_a_request_to_save_saves_and_continues(job, undisturbed, tmp_path) -> None:
    run = tmp_path / "run"
    saved = []
    for event in events(job, run):
        if isinstance(event, Step):
            saved.append(checkpoint.load_latest_checkpoint(run / "checkpoints")[0])
            if event.number == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
    assert saved[0] is None
    assert saved[-1].metadata["progress"]["update"] >= 1
    jobs.assert_same(run, undisturbed)


def test_a_checkpoint_is_saved_during_an_evaluation(
    job, undisturbed, tmp_path, monkeypatch
) -> None:
    run, saved = tmp_path / "run", []
    read, save = finetune.training.finetuning.compute_logits, RunFolder.save

    def disturb(*arguments):
        for number, found in enumerate(read(*arguments)):
            if number == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield found

    def note(self, update, tensors, facts):
        saved.append((update, facts["progress"]["evaluated_update"]))
        save(self, update, tensors, facts)

    monkeypatch.setattr(finetune.training.finetuning, "compute_logits", disturb)
    monkeypatch.setattr(RunFolder, "save", note)
    jobs.train(job, run)
    # After an update, and before what was being evaluated is known.
    assert [update for update, known in saved if known < update] == [2, 3, 5, 6]
    jobs.assert_same(run, undisturbed)


def stop_with_slow_saves(job, run: Path, monkeypatch, number: int, second: int) -> None:
    """From update 2 to 3, and there a signal; a second one comes while that state is written.

    Which is slow until a second after that.
    """
    save, begun, over = checkpoint.save_tensors, threading.Event(), threading.Event()

    def slowly(path, tensors):
        begun.set()
        over.wait()
        save(path, tensors)

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), second)
        time.sleep(1)
        over.set()

    jobs.stop_at(job, run, 2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_tensors", slowly)
        helper = threading.Thread(target=interrupt)
        helper.start()
        try:
            jobs.stop_at(job, run, 3, number)
        except KeyboardInterrupt:
            assert not over.is_set()
            raise
        finally:
            helper.join()


def test_a_second_interrupt_does_not_wait_for_a_save(
    job, undisturbed, tmp_path, monkeypatch
) -> None:
    """The checkpoint that is being written may be lost; the one before it is not."""
    run = tmp_path / "run"
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        stop_with_slow_saves(job, run, monkeypatch, signal.SIGINT, signal.SIGINT)
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()
    jobs.train(job, run, resume=True)
    jobs.assert_same(run, undisturbed)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_an_echo_does_not_end_a_save(number, job, undisturbed, tmp_path, monkeypatch) -> None:
    """A launcher may forward a signal that the process has received already."""
    run, first = tmp_path / "run", signal.SIGTERM if number == signal.SIGUSR1 else number
    monkeypatch.setattr(signals, "ECHO_SECONDS", 1e9)
    stop_with_slow_saves(job, run, monkeypatch, first, number)
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (state.metadata["progress"]["update"], warnings) == (3, [])
