"""Numbers that are not finite, missing memory, and a full disk."""

import json
import shutil

import numpy as np
import pytest
import torch

import finetune
import finetune.training.finetuning
from finetune.checkpointing import checkpoint
from finetune.models.task_model import TaskModel
from finetune.training.events import Evaluated, Notice
from finetune.training.finetuning import FinetuningJob, events
from finetune.training.loop import Step, count_tokens
from finetune.training.progress import TrainingProgress
from task_formats import UsageError
from tests.support import jobs
from tests.support.disks import small_disk


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """In training a batch with a certain long text in it gives a loss that is not finite."""
    forward = TaskModel.forward

    def forward_or_not(self, batch, lm=False):
        outputs = forward(self, batch, lm)
        bad = self.training and any(span.longest > 40 for span in batch.spans)
        return outputs._replace(logits=outputs.logits * np.inf) if bad else outputs

    monkeypatch.setattr(TaskModel, "forward", forward_or_not)


def recipe(base, folder, bad: tuple[int, ...], **settings):
    """The 20 rows of a small job; those numbered in `bad` are long."""
    made = jobs.recipe("classification", base, folder, **settings)
    rows = jobs.rows("classification", 20)
    for n in bad:
        rows[n]["text"] = " ".join(["night"] * 60)
    jobs.write_rows(folder / "train.jsonl", rows)
    return made


def test_an_update_that_is_not_finite_changes_no_weight(bases, tmp_path, poisoned) -> None:
    job, run = recipe(bases("gpt2"), tmp_path / "d", (7,), checkpoint_updates=1), tmp_path / "run"
    order = finetune.training.finetuning.EpochSampler(20, 8, 2, 42)
    bad = [update for update in range(1, 7) if 7 in order.indices(update)]
    assert len(bad) == 2  # once an epoch
    notices = [event.text for event in events(job, run) if isinstance(event, Notice)]
    row = "train.jsonl/7"
    assert notices == [
        f"update {u} skipped: loss or gradient not finite, in rows {row}" for u in bad
    ]
    log = jobs.log(run)
    assert [e for e in log if e["event"] == "refused"] == [
        {"event": "refused", "update": update, "rows": row} for update in bad
    ]
    assert [e["update"] for e in log if e["event"] == "train" and e["loss"] is None] == bad
    final = jobs.weights(run)
    assert all(tensor.isfinite().all() for tensor in final.values())
    for update in (u for u in bad if u > 1):
        before, after = (state_after(job, tmp_path / f"{u}", u) for u in (update - 1, update))
        assert all(torch.equal(before[name], after[name]) for name in before)


def state_after(job, run, update: int) -> dict[str, torch.Tensor]:
    """Weights and moments after an update."""
    for event in events(job, run):
        if isinstance(event, Step) and event.number == update + 1:
            break
    return checkpoint.load_checkpoint(run / "checkpoints" / f"update-{update:08d}").tensors


def test_a_gradient_that_is_not_finite_is_refused(bases, tmp_path, monkeypatch) -> None:
    """Though the loss is."""

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, slope):
            return slope * torch.nan

    forward = TaskModel.forward

    def spoilt(self, batch, lm=False):
        outputs = forward(self, batch, lm)
        return outputs._replace(logits=Spoil.apply(outputs.logits))

    monkeypatch.setattr(TaskModel, "forward", spoilt)
    job = jobs.recipe("classification", bases("gpt2"), tmp_path / "data")
    run, seen = tmp_path / "run", []
    with pytest.raises(UsageError, match="nothing was trained"):
        seen.extend(events(job, run))
    assert [bool(event.nonfinite) for event in seen if isinstance(event, Step)] == [True] * 6
    assert [event.best for event in seen if isinstance(event, Evaluated)] == [False, False]
    notices = [event.text for event in seen if isinstance(event, Notice)]
    assert notices[0].count("train.jsonl/") == 8  # all of the update's rows: none alone is at fault
    assert not (run / "model").exists()
    assert not (run / "result.json").exists()
    with pytest.raises(UsageError, match="nothing was trained"):
        finetune.train(job, run, resume=True)


@pytest.mark.parametrize(("said", "most", "kept"), [({}, 10, 9), ({"most_refused": 4}, 4, 3)])
def test_a_run_that_is_refused_again_and_again_stops(
    bases, tmp_path, poisoned, said, most, kept
) -> None:
    job = recipe(bases("gpt2"), tmp_path / "data", tuple(range(20)), epochs=9, **said)
    run, seen = tmp_path / "run", []
    with pytest.raises(UsageError, match=rf"{most} updates in a row was not finite"):
        seen.extend(events(job, run))
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    assert (warnings, state.metadata["progress"]["update"]) == ([], kept)  # the end of an epoch
    # Resumed, it remembers how many it was.
    with pytest.raises(UsageError, match=f"{most} updates in a row"):
        finetune.train(job, run, resume=True)
    last = [event for event in jobs.log(run) if event["event"] == "train"][-1]
    assert last["update"] == most


def test_without_finite_scores_there_is_no_best_model(bases, tmp_path, monkeypatch) -> None:
    """A model that predicts NaN must not look like one that scores 0.3."""
    forward, broken = TaskModel.forward, [True]

    def forward_or_nan(self, batch, lm=False):
        outputs = forward(self, batch, lm)
        bad = broken and not self.training
        return outputs._replace(logits=outputs.logits * np.nan) if bad else outputs

    monkeypatch.setattr(TaskModel, "forward", forward_or_nan)
    job = jobs.recipe("classification", bases("gpt2"), tmp_path / "data")
    run, seen = tmp_path / "run", []
    with pytest.raises(UsageError, match="no evaluation had finite scores"):
        seen.extend(events(job, run))
    evaluations = [event for event in seen if isinstance(event, Evaluated)]
    assert [event.best for event in evaluations] == [False, False]
    assert all(np.isnan(value) for value in evaluations[-1].scores.values())
    assert not (run / "model").exists()
    assert not (run / "result.json").exists()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    with pytest.raises(UsageError, match="no evaluation had finite scores"):
        finetune.train(job, run, resume=True)
    broken.clear()  # As on another machine.
    assert finetune.train(job, run, resume=True).update == 6
    # A result of the first version may hold null.
    content = json.loads((run / "result.json").read_text())
    content["scores"]["evaluate"]["loss"] = None
    (run / "result.json").write_text(json.dumps(content))
    assert np.isnan(finetune.train(job, run, resume=True).scores["evaluate"]["loss"])


def test_a_prediction_that_is_not_finite_is_an_error(bases, tmp_path) -> None:
    job = jobs.recipe("classification", bases("gpt2"), tmp_path / "data", epochs=1)
    run = jobs.train(job, tmp_path / "run")
    predictor = finetune.load(run)
    with torch.no_grad():
        predictor.model.head.bias[1] = torch.inf
    with pytest.raises(UsageError, match="output for rows/0 is not finite"):
        predictor.predict(jobs.rows("classification", 2))
    assert np.isnan(predictor.evaluate()["accuracy"])


def test_nan_is_never_the_best_score() -> None:
    progress = TrainingProgress()
    better = [
        progress.record_evaluation(k + 1, score)
        for k, score in enumerate([np.nan, np.nan, -3.0, np.nan])
    ]
    assert better == [False, False, True, False]
    assert (progress.best_value, progress.best_update) == (-3.0, 3)
    assert progress.evaluations_since_best == 1


# -- out of memory -----------------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch) -> list[int]:
    """No forward pass of training over more than 100 tokens fits; what was tried and fitted."""
    fitted: list[int] = []
    forward = TaskModel.forward

    def forward_or_fail(self, batch, lm=False):
        if self.training and count_tokens(batch) > 100:
            raise torch.OutOfMemoryError("out of memory")
        if self.training:
            fitted.append(count_tokens(batch))
        return forward(self, batch, lm)

    monkeypatch.setattr(TaskModel, "forward", forward_or_fail)
    return fitted


def test_out_of_memory_an_update_is_made_in_pieces(bases, tmp_path, small_memory) -> None:
    job = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epsilon=1e-3, batch_size=10)
    run = tmp_path / "run"
    budgets = [
        event.max_tokens_per_forward for event in events(job, run) if isinstance(event, Step)
    ]
    assert all(60 < budget <= 100 for budget in budgets)
    assert budgets == sorted(budgets, reverse=True)
    assert 0 < max(small_memory) <= 100
    assert (
        checkpoint.load_latest_checkpoint(run / "checkpoints")[0].metadata["progress"][
            "max_tokens_per_forward"
        ]
        == budgets[-1]
    )
    assert sum(small_memory) >= jobs.result(run)["tokens"]


def test_out_of_memory_changes_no_result(bases, tmp_path, request) -> None:
    job = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", epsilon=1e-3, batch_size=10)
    whole = jobs.train(job, tmp_path / "whole")
    request.getfixturevalue("small_memory")
    pieces = jobs.train(job, tmp_path / "pieces")
    assert jobs.distance(jobs.weights(whole), jobs.weights(pieces)) < 1e-5
    assert jobs.numbers(whole) == pytest.approx(jobs.numbers(pieces), rel=1e-4)


def test_a_smaller_budget_is_remembered_by_a_resumed_run(bases, tmp_path, small_memory) -> None:
    noisy = {"head_dropout": 0.1, "base_part": {"dropout": 0.1}, "batch_size": 10}
    job = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", **noisy)
    whole, run = jobs.train(job, tmp_path / "whole"), tmp_path / "run"
    for event in events(jobs.change(job, "train", checkpoint_updates=1), run):
        if isinstance(event, Step) and event.number == 3:
            break
    small_memory.clear()
    budgets = [
        e.max_tokens_per_forward for e in events(job, run, resume=True) if isinstance(e, Step)
    ]
    assert set(budgets) == {budgets[0]}
    assert small_memory  # nothing had to be tried again: every pass fitted at once
    assert jobs.distance(jobs.weights(whole), jobs.weights(run)) == 0
    assert jobs.log(whole) == jobs.log(run)


def test_one_example_that_does_not_fit_is_an_error(bases, tmp_path, monkeypatch) -> None:
    def fail(self, batch, lm=False):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TaskModel, "forward", fail)
    job = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    with pytest.raises(torch.OutOfMemoryError):
        finetune.train(job, tmp_path / "run")


def test_other_errors_are_not_taken_for_it(bases, tmp_path, monkeypatch) -> None:
    def fail(self: FinetuningJob, update: int, max_tokens: int | None):
        raise RuntimeError("something else")

    monkeypatch.setattr(FinetuningJob, "make_microbatches", fail)
    job = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data")
    with pytest.raises(RuntimeError, match="something else"):
        finetune.train(job, tmp_path / "run")


# -- a full disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["30k", "150k"])
def test_a_full_disk_is_reported_when_the_best_model_is_saved(
    size, bases, tmp_path, monkeypatch
) -> None:
    """Evaluated before the first state is due: the model is what does not fit."""
    # As if another program filled the disk after the first update.
    monkeypatch.setattr("finetune.storage.files.free_space", lambda folder: 2**40)
    job = jobs.recipe("entailment", bases("gpt2"), tmp_path / "data", evaluations=3)
    with small_disk(tmp_path / "disk", size) as disk:
        with pytest.raises(UsageError, match="No space left") as caught:
            finetune.train(job, disk / "run")
        assert caught.value.cure == "Free some space, or choose a folder on another disk."
        assert not list(disk.glob("run/model*"))


def test_the_best_model_and_the_states_survive_a_disk_that_fills(bases, tmp_path) -> None:
    job = jobs.recipe(
        "entailment", bases("gpt2"), tmp_path / "data", evaluations=3, checkpoint_updates=1
    )
    with small_disk(tmp_path / "disk", "2m") as disk:
        with pytest.raises(UsageError, match="No space left"):  # noqa: PT012
            for event in events(job, disk / "run"):
                if isinstance(event, Evaluated) and event.update == 2:
                    rest = shutil.disk_usage(disk).free
                    (disk / "ballast").write_bytes(bytes(max(rest - 20_000, 0)))
        state, warnings = checkpoint.load_latest_checkpoint(disk / "run" / "checkpoints")
        assert state.metadata["progress"]["update"] >= 1
        assert warnings == []
        assert finetune.load(disk / "run").evaluate()["accuracy"] >= 0
        (disk / "ballast").unlink()
        run = jobs.train(job, disk / "run", resume=True)
        whole = jobs.train(job, tmp_path / "whole")
        jobs.assert_same(whole, run)
