"""Data files that vanish or change while a run goes on, or between two parts of it."""

import os
import signal
from pathlib import Path

import pytest

import finetune.data.splits
from finetune.checkpointing import checkpoint
from finetune.training.events import Interrupted, Notice
from finetune.training.loop import Step
from finetune.training.train import events
from task_formats import UsageError
from tests.support import jobs


@pytest.fixture
def job(bases, tmp_path):
    """A job with three files: to train on, to evaluate on, and another one to score at the end."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    more = jobs.write_rows(tmp_path / "data" / "more.jsonl", jobs.rows("entailment", 6, seed=5))
    return jobs.change(recipe, "data", extra={"more": more})


def stop_at(job, run: Path, update: int, act=lambda: None) -> None:
    with pytest.raises(Interrupted):  # noqa: PT012
        for event in events(job, run, resume=True):
            if isinstance(event, Step) and event.number == update:
                act()
                os.kill(os.getpid(), signal.SIGTERM)


def test_what_was_read_already_is_not_missed(job, tmp_path) -> None:
    """All rows are read once, at the beginning."""
    whole, run = jobs.train(job, tmp_path / "whole"), tmp_path / "run"
    for event in events(job, run):
        if isinstance(event, Step) and event.number == 2:
            Path(job.data.train).unlink()
            Path(job.data.evaluate).write_text("something else\n")
            Path(job.data.extra["more"]).unlink()
    jobs.assert_same(whole, run)


def test_a_file_that_is_not_there_is_named_before_anything_is_trained(job, tmp_path) -> None:
    """Also one that is scored at the very end."""
    more = Path(job.data.extra["more"])
    more.unlink()
    with pytest.raises(UsageError, match=r"more\.jsonl: no such file"):
        jobs.train(job, tmp_path / "run")
    assert checkpoint.load_latest_checkpoint(tmp_path / "run" / "checkpoints")[0] is None


def test_rows_left_out_of_what_is_scored_at_the_end_are_told(job, tmp_path) -> None:
    """And a bad one stops the run before its first update, where it may not be left out."""
    with open(job.data.extra["more"], "a") as file:
        file.write('{"premise": "no hypothesis", "label": "yes"}\n')
    with pytest.raises(UsageError, match=r"more\.jsonl, line 7"):
        jobs.train(job, tmp_path / "stops")
    assert checkpoint.load_latest_checkpoint(tmp_path / "stops" / "checkpoints")[0] is None
    happened = [*events(jobs.change(job, "data", on_bad_row="skip"), tmp_path / "run")]
    told = [event.text for event in happened if isinstance(event, Notice)]
    assert [text.partition(" (")[0] for text in told] == ["left out more.jsonl/6"]


@pytest.mark.parametrize("name", ["train", "evaluate", "more"])
def test_a_file_that_is_gone_at_a_resume_is_named(name, job, tmp_path) -> None:
    run, path = tmp_path / "run", Path(getattr(job.data, name, None) or job.data.extra[name])
    stop_at(job, run, 4, path.unlink)
    with pytest.raises(UsageError, match=rf"{path.name}: no such file"):
        jobs.train(job, run, resume=True)
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (state.metadata["progress"]["update"], warnings) == (4, [])


@pytest.mark.parametrize(("name", "count"), [("train", 20), ("more", 6)])
def test_rows_that_changed_are_told_at_a_resume(name, count, job, tmp_path) -> None:
    run, path = tmp_path / "run", Path(getattr(job.data, name, None) or job.data.extra[name])
    stop_at(job, run, 4)
    jobs.write_rows(path, jobs.rows("entailment", count, seed=8))
    notices = [e.text for e in events(job, run, resume=True) if isinstance(e, Notice)]
    assert [text.partition(" was ")[0] for text in notices] == [f"resumed with other data: {name}"]


@pytest.mark.parametrize("act", ["append", "remove"])
def test_a_file_that_is_written_while_it_is_read_is_refused(
    act, job, tmp_path, monkeypatch
) -> None:
    """And never comes into the cache of encoded rows."""
    path, read = Path(job.data.train), finetune.data.splits.read_examples

    def disturb(*arguments, **options):
        examples, report = read(*arguments, **options)

        def slowly():
            for k, example in enumerate(examples):
                if k == 3 and arguments[2] == path.name:
                    with path.open("a") as file:
                        file.write("\n")
                    if act == "remove":
                        path.unlink()
                yield example

        return slowly(), report

    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(finetune.data.splits, "read_examples", disturb)
    with pytest.raises(UsageError, match=r"train\.jsonl: changed while it was read"):
        jobs.train(job, tmp_path / "run")
    assert not [p for p in (tmp_path / "cache").iterdir() if "partial" not in p.name]


def test_other_values_for_a_finished_run_are_said_to_be_ignored(job, tmp_path) -> None:
    run = jobs.train(job, tmp_path / "run")
    before = jobs.result(run)
    other = jobs.change(job, "train", epochs=9, learning_rate=0.5)
    notices = [e.text for e in events(other, run, resume=True) if isinstance(e, Notice)]
    assert notices == [
        f"{run} is finished already: nothing was trained",
        "ignored, since the run is finished: train.learning_rate was 0.001, is 0.5; "
        "train.epochs was 2.0, is 9",
    ]
    assert jobs.result(run) == before
    assert len([e for e in events(job, run, resume=True) if isinstance(e, Notice)]) == 1
