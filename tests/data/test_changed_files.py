"""Data files that disappear or change while a run trains, or before it is resumed."""

from pathlib import Path

import pytest

from finetune.checkpointing import checkpoint
from finetune.training.events import Notice
from finetune.training.finetuning import events
from finetune.training.loop import Step
from task_formats import UsageError
from tests.support import jobs


@pytest.fixture
def job(bases, tmp_path):
    """A job with three files: training, evaluation, and one that is scored at the end."""
    recipe = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    more = jobs.write_rows(tmp_path / "data" / "more.jsonl", jobs.rows("entailment", 6, seed=5))
    return jobs.change(recipe, "data", extra={"more": more})


def file_of(job, name: str) -> Path:
    return Path(getattr(job.data, name, None) or job.data.extra[name])


def checkpoint_of(run: Path):
    return checkpoint.load_latest_checkpoint(run / "checkpoints")


def notices(*arguments, **options) -> list[str]:
    return [event.text for event in events(*arguments, **options) if isinstance(event, Notice)]


def test_all_rows_are_read_before_training(job, tmp_path) -> None:
    expected, run = jobs.train(job, tmp_path / "expected"), tmp_path / "run"
    for event in events(job, run):
        if isinstance(event, Step) and event.number == 2:
            file_of(job, "train").unlink()
            file_of(job, "evaluate").write_text("something else\n")
            file_of(job, "more").unlink()
    jobs.assert_same(expected, run)


def test_a_bad_row_of_an_extra_split_stops_before_training_or_is_reported(job, tmp_path) -> None:
    with open(job.data.extra["more"], "a") as file:
        file.write('{"premise": "no hypothesis", "label": "yes"}\n')
    with pytest.raises(UsageError, match=r"more\.jsonl, line 7"):
        jobs.train(job, tmp_path / "stops")
    assert checkpoint_of(tmp_path / "stops")[0] is None
    [notice] = notices(jobs.change(job, "data", on_bad_row="skip"), tmp_path / "run")
    assert notice.startswith("left out more.jsonl/6 (")


@pytest.mark.parametrize("name", ["train", "evaluate", "more"])
def test_a_file_that_is_missing_at_a_resume_is_named(name, job, tmp_path) -> None:
    run, path = tmp_path / "run", file_of(job, name)
    jobs.stop_at(job, run, 4)
    path.unlink()
    with pytest.raises(UsageError, match=rf"{path.name}: no such file"):
        jobs.train(job, run, resume=True)
    state, warnings = checkpoint_of(run)
    assert (state.metadata["progress"]["update"], warnings) == (4, [])


def test_other_rows_of_an_extra_split_are_reported_at_a_resume(job, tmp_path) -> None:
    """It is scored at the end only."""
    run = tmp_path / "run"
    jobs.stop_at(job, run, 4)
    jobs.write_rows(file_of(job, "more"), jobs.rows("entailment", 6, seed=8))
    [notice] = notices(job, run, resume=True)
    assert notice.startswith("resumed with other data: more was ")


def test_other_training_rows_are_refused_at_a_resume(job, tmp_path) -> None:
    run = tmp_path / "run"
    jobs.stop_at(job, run, 4)
    jobs.write_rows(file_of(job, "train"), jobs.rows("entailment", 20, seed=8))
    with pytest.raises(UsageError, match="not the rows that the run began with"):
        notices(job, run, resume=True)


def test_a_finished_run_ignores_other_values_and_says_so(job, tmp_path) -> None:
    run = jobs.train(job, tmp_path / "run")
    before = jobs.result(run)
    other = jobs.change(job, "train", epochs=1, learning_rate=0.5)
    assert notices(other, run, resume=True) == [
        f"{run} is already finished: nothing was trained",
        "ignored, because the run is finished: learning_rate: 0.5; epochs: 1",
    ]
    assert jobs.result(run) == before
