"""What a run folder keeps: recipe, log (which resumes to the byte), checkpoints and result."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.checkpointing import checkpoint
from finetune.checkpointing.run_folder import LOG, MARKER, RunFolder, read_recipe, read_result
from task_formats import UsageError
from tests.support import jobs
from tests.support.disks import names, small_disk


def test_a_run_keeps_what_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "rte"
    with RunFolder.open(folder) as run:
        assert not run.finished
        assert run.resume() is None
        run.write_recipe("about: grüße\n")
        run.log("train", {"update": 1, "loss": torch.tensor(0.5), "seconds": {"step": 0.25}})
        assert len((folder / LOG).read_text().splitlines()) == 1, "at once"
        run.log("evaluate", {"update": 1, "scores": {"f1": float("nan")}})
        run.write_result({"scores": {"f1": float("inf")}, "update": 1})
        assert run.finished
        assert run.warnings == []
    assert names(folder) == [MARKER, ".lock", LOG, "recipe.yaml", "result.json"]
    assert read_recipe(folder) == "about: grüße\n"
    assert read_result(folder) == {"scores": {"f1": None}, "update": 1}
    assert (folder / LOG).read_text().splitlines() == [
        '{"event": "train", "update": 1, "loss": 0.5, "seconds": {"step": 0.25}}',
        '{"event": "evaluate", "update": 1, "scores": {"f1": null}}',
    ]


# Resume.


def train(folder: Path, updates: int, every: int, *, die_after: int | None, resume: bool) -> None:
    """A simulated training: its events depend on the checkpoint alone, except for the seconds."""
    logged = 0
    with RunFolder.open(folder, resume=resume) as run:
        state = run.resume()
        weight = state.tensors["weight"] if state else torch.zeros(1)
        run.write_recipe("about: simulated\n")
        for update in range(int(state.metadata["update"]) + 1 if state else 1, updates + 1):
            weight = weight * 0.9 + update
            for kind in ("train", "evaluate") if update % 3 == 0 else ("train",):
                clock = os.urandom(3).hex()
                run.log(kind, {"update": update, "loss": weight.sum(), "seconds": clock})
                logged += 1
                if logged == die_after:
                    return
            if update % every == 0:
                run.save(update, {"weight": weight}, {"update": update})
        run.write_result({"loss": weight.sum()})


@given(
    updates=st.integers(1, 12),
    every=st.integers(1, 5),
    deaths=st.lists(st.integers(1, 9), max_size=3),
    tail=st.binary(max_size=9).map(lambda tail: tail.replace(b"\n", b"x")),
)
def test_the_log_of_a_resumed_run_equals_that_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory,
    updates: int,
    every: int,
    deaths: list[int],
    tail: bytes,
) -> None:
    whole, resumed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("resumed")
    train(whole, updates, every, die_after=None, resume=False)
    for death in deaths:
        if not (resumed / "result.json").exists():
            train(resumed, updates, every, die_after=death, resume=True)
            with open(resumed / LOG, "ab") as log:
                log.write(tail)  # the line that was being written
    if not (resumed / "result.json").exists():
        train(resumed, updates, every, die_after=None, resume=True)
        assert jobs.log(resumed) == jobs.log(whole)
    assert read_result(resumed) == read_result(whole)


def test_lost_events_are_reported(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path) as run:
        for update in (1, 2, 3):
            run.log("train", {"update": update})
        run.save(3, {}, {})
    (tmp_path / LOG).write_text('{"event": "x"}\n')
    with RunFolder.open(tmp_path, resume=True) as run:
        assert run.resume() is not None
        assert "events before the checkpoint are lost" in run.warnings[0]
        run.log("train", {"update": 4})
    assert [event["event"] for event in jobs.log(tmp_path)] == ["x", "train"]


# Full and broken disks.


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, pytest.raises(UsageError) as caught:  # noqa: PT012
        with RunFolder.open(disk / "run") as run:
            run.log("train", {"update": 1})
            run.save(1, {"a": torch.arange(10)}, {})
            run.write_result({})
            while True:
                run.log("train", {"update": 2, "text": "x" * 50_000})
        raise AssertionError("unreachable")
    assert "No space left" in caught.value.what
    assert "Free some space" in caught.value.cure


@pytest.mark.parametrize("call", ["log", "save", "write_result", "close"])
def test_a_failed_save_is_reported_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder.open(tmp_path) as run:
        run.save(1, {"a": torch.ones(1)}, {})
        run._writer.wait()
        monkeypatch.setattr(checkpoint, "save_tensors", fail)
        run.save(2, {"a": torch.ones(1)}, {})
        assert run._writer._thread is not None
        run._writer._thread.join()
        arguments = {"log": ("train", {}), "save": (3, {}, {}), "write_result": ({},), "close": ()}
        with pytest.raises(UsageError, match="No space left"):
            getattr(run, call)(*arguments[call])
        assert not run.finished
    assert names(tmp_path / "checkpoints") == ["update-00000001"]
    RunFolder.open(tmp_path, resume=True).close()  # The folder is unlocked.
