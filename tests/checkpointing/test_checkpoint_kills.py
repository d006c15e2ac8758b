"""Kills, power cuts and full disks: a complete checkpoint always remains."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpointing.checkpoint import (
    MANIFEST,
    METADATA,
    TENSORS,
    finish_interrupted_saves,
    load_latest_checkpoint,
    save_checkpoint,
)
from task_formats import UsageError
from tests.support import processes
from tests.support.checkpoints import (
    assert_checkpoint,
    metadata_of,
    save_checkpoints,
    tensors_of,
)
from tests.support.disks import make_read_only, names, small_disk


class Killed(BaseException):
    """Simulates a kill: nothing may catch it."""


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves a complete checkpoint or none: the order of flushes and renames."""
    seen: list[str] = []

    def flush(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    rename = os.rename
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", lambda *paths: seen.append("rename") or rename(*paths))
    save_checkpoints(tmp_path, 1)
    named = seen.index("rename")
    assert seen[named + 1 :] == [tmp_path.name]
    partial = "update-00000001.partial"
    assert {TENSORS, METADATA, MANIFEST, partial} <= set(seen[:named])


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint_remains_after_a_kill_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Each call that changes the disk is the last one once; the next save then tidies up."""
    kill, ended = 0, False
    while not ended:
        folder = tmp_path / str(kill)
        save_checkpoints(folder, 5)
        update = 5 if again else 6
        with monkeypatch.context() as patch:
            _kill_after(kill, patch)
            try:
                save_checkpoint(folder, update, tensors_of(9), metadata_of(9))
                ended = True
            except Killed:
                pass
        finish_interrupted_saves(folder)
        newest, warnings = load_latest_checkpoint(folder)
        assert newest is not None
        assert newest.metadata["update"] in (5, 9)
        assert_checkpoint(newest, newest.metadata["update"])
        assert warnings == []
        save_checkpoints(folder, 7)
        assert_checkpoint(load_latest_checkpoint(folder)[0], 7)
        before, last = names(folder)
        assert before in ("update-00000005", "update-00000006")
        assert last == "update-00000007"
        kill += 1
    assert kill > 10


def _kill_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    left = itertools.count(calls, -1)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(left) <= 0:
                raise Killed
            return call(*arguments, **named)

        return step

    for name in ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir"):
        patch.setattr(os, name, counted(getattr(os, name)))


def large(update: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((50_000,), float(update)), "b": torch.tensor(update)}


def kill_and_load(folder: Path, kills: int) -> int:
    """Kills children that save without pause, and loads what each has left."""
    draw, last = random.Random(0), 0
    save_checkpoint(folder, 0, large(0), {"update": 0})
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            for update in itertools.count(last + 1):
                save_checkpoint(folder, update, large(update), {"update": update})
        time.sleep(draw.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest, warnings = load_latest_checkpoint(folder)
        assert newest is not None
        update = newest.metadata["update"]
        assert update >= last, (update, last)
        assert warnings == []
        torch.testing.assert_close(newest.tensors, large(update), rtol=0, atol=0)
        last = update
    return 0


@pytest.mark.parametrize("kills", [5, pytest.param(500, marks=pytest.mark.slow)])
def test_a_checkpoint_remains_after_every_sigkill(tmp_path: Path, kills: int) -> None:
    """A process that saves without pause is killed at random moments."""
    child = processes.start(kill_and_load, tmp_path / "run", kills, output=tmp_path / "log")
    child.join()
    assert child.exitcode == 0, (tmp_path / "log").read_text()


def test_a_full_disk_keeps_the_checkpoints(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_checkpoints(disk, 1, 2)
        with pytest.raises(UsageError, match="No space left on device") as caught:
            save_checkpoint(disk, 3, {"large": torch.ones(300_000)}, {})
        assert "Free some space" in caught.value.cure
        assert names(disk) == ["update-00000001", "update-00000002"]
        save_checkpoints(disk, 3)  # What was half written is gone.
        assert_checkpoint(load_latest_checkpoint(disk)[0], 3)


def test_a_read_only_disk_is_reported_and_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_checkpoints(disk, 1)
        make_read_only(disk)
        with pytest.raises(UsageError, match="read-only"):
            save_checkpoints(disk, 2)
        assert_checkpoint(load_latest_checkpoint(disk)[0], 1)
