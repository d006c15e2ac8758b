"""Data files that vanish or change while a run goes on, or between two parts of it."""

import os
import signal
from pathlib import Path

import jobs
import pytest

import finetune.splits
from finetune import checkpoint
from finetune.loop import Step
from finetune.news import Interrupted, Notice
from finetune.training import events
from task_formats import UsageError


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
    """Train and evaluation rows are read once, at the beginning."""
    whole, run = jobs.train(job, tmp_path / "whole"), tmp_path / "run"
    for event in events(job, run):
        if isinstance(event, Step) and event.number == 2:
            Path(job.data.train).unlink()
            Path(job.data.evaluate).write_text("something else\n")
    jobs.assert_same(whole, run)


def test_a_file_that_vanishes_before_it_is_read_is_named(job, tmp_path) -> None:
    """The whole state of the last update stays; with the file back the run ends as ever."""
    whole, run = jobs.train(job, tmp_path / "whole"), tmp_path / "run"
    more = Path(job.data.extra["more"])
    away = more.rename(more.with_suffix(".away"))
    with pytest.raises(UsageError, match=r"more\.jsonl: no such file"):
        jobs.train(job, run)
    state, warnings = checkpoint.latest(run / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (6, [])
    assert not (run / "result.json").exists()
    away.rename(more)
    jobs.train(job, run, resume=True)
    jobs.assert_same(whole, run)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_file_that_is_gone_at_a_resume_is_named(name, job, tmp_path) -> None:
    run, path = tmp_path / "run", Path(getattr(job.data, name))
    stop_at(job, run, 4, path.unlink)
    with pytest.raises(UsageError, match=rf"{path.name}: no such file"):
        jobs.train(job, run, resume=True)
    state, warnings = checkpoint.latest(run / "checkpoints")
    assert (state.facts["progress"]["update"], warnings) == (4, [])


def test_train_rows_that_changed_are_told_at_a_resume(job, tmp_path) -> None:
    run = tmp_path / "run"
    stop_at(job, run, 4)
    jobs.write_rows(Path(job.data.train), jobs.rows("entailment", 20, seed=8))
    notices = [e.text for e in events(job, run, resume=True) if isinstance(e, Notice)]
    assert [text.partition(" was ")[0] for text in notices] == ["resumed with other data: train"]


@pytest.mark.parametrize("act", ["append", "remove"])
def test_a_file_that_is_written_while_it_is_read_is_refused(
    act, job, tmp_path, monkeypatch
) -> None:
    """And never comes into the cache of encoded rows."""
    path, read = Path(job.data.train), finetune.splits.read_examples

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
    monkeypatch.setattr(finetune.splits, "read_examples", disturb)
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
