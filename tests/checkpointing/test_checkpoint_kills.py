"""Kills, power cuts and bad disks: a whole state always remains."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.checkpointing.checkpoint import FACTS, MANIFEST, TENSORS, latest, save
from finetune.storage import files
from task_formats import UsageError
from tests.support.disks import make_read_only, names, small_disk
from tests.support.states import expect_state, facts_of, save_states, tensors_of

pytestmark = pytest.mark.usefixtures("no_flush")


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_all_is_on_the_disk_before_the_state_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves is a whole state or none: the order of flushes and renames."""
    seen: list[str] = []

    def flush(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    rename = os.rename
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", lambda *paths: seen.append("rename") or rename(*paths))
    save_states(tmp_path, 1)
    named = seen.index("rename")
    assert seen[named + 1 :] == [tmp_path.name]
    partial = "update-00000001.partial"
    assert {TENSORS, FACTS, MANIFEST, partial} <= set(seen[:named])
    assert seen.index(TENSORS) < next(k for k, name in enumerate(seen) if MANIFEST in name)


@pytest.mark.parametrize("again", [False, True])
def test_a_whole_state_remains_after_a_kill_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Every call that changes the disk is once the last; then the next save puts all in order."""
    kill = 0
    ended = False
    while not ended:
        folder = tmp_path / str(kill)
        save_states(folder, 5)
        update = 5 if again else 6
        with monkeypatch.context() as patch:
            _kill_after(kill, patch)
            try:
                save(folder, update, tensors_of(9), facts_of(9))
                ended = True
            except Killed:
                pass
        state, _ = latest(folder)
        assert state is not None
        expect_state(state, state.facts["update"])
        assert state.facts["update"] in (5, 9)
        save_states(folder, 7)
        expect_state(latest(folder)[0], 7)
        before, last = names(folder)
        assert before in ("update-00000005", "update-00000006")
        assert last == "update-00000007"
        kill += 1
    assert kill > 10


def _kill_after(calls: int, patch: pytest.MonkeyPatch) -> None:
    left = calls

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*arguments, **named)

        return step

    for name in ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir"):
        patch.setattr(os, name, counted(getattr(os, name)))


KILLER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import torch
    from finetune.checkpointing.checkpoint import latest, save

    folder, draw, half_written, last = Path(sys.argv[1]), random.Random(0), 0, 0

    def tensors(update):
        return {"a": torch.full((50_000,), float(update)), "b": torch.tensor(update)}

    save(folder, 0, tensors(0), {"update": 0})
    for _ in range(int(sys.argv[2])):
        child = os.fork()
        if child == 0:
            update = last
            while True:
                update += 1
                save(folder, update, tensors(update), {"update": update})
        time.sleep(draw.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state, warnings = latest(folder)
        update = state.facts["update"]
        assert update >= last, (update, last)
        for name, tensor in tensors(update).items():
            assert torch.equal(state.tensors[name], tensor), (name, update)
        last, half_written = update, half_written + bool(warnings)
        print("whole", flush=True)
    print(f"{last} states, {half_written} half-written ones", file=sys.stderr)
"""


def kill_savers(root: Path, folder: Path, kills: int) -> int:
    """SIGKILL a process that saves without pause, `kills` times; how often a whole state stayed."""
    command = [sys.executable, "-c", textwrap.dedent(KILLER), str(folder), str(kills)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout.count("whole\n")


def test_a_whole_state_remains_after_20_kills(root: Path, tmp_path: Path) -> None:
    assert kill_savers(root, tmp_path / "checkpoints", 20) == 20


@pytest.mark.slow
def test_a_whole_state_remains_after_500_kills(root: Path, tmp_path: Path) -> None:
    assert kill_savers(root, tmp_path / "checkpoints", 500) == 500


def test_full_disk_is_told_before_writing_and_the_states_stay(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_states(disk, 1, 2)
        with pytest.raises(UsageError, match=r"bytes are needed") as caught:
            save(disk, 3, {"large": torch.ones(250_000)}, {})
        assert "Free some space" in caught.value.cure
        expect_state(latest(disk)[0], 2)
        assert names(disk) == ["update-00000001", "update-00000002"]


def test_disk_that_fills_while_writing_keeps_the_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "check_disk_space", lambda folder, size: None)
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_states(disk, 1, 2)
        with pytest.raises(UsageError, match="No space left on device"):
            save(disk, 3, {"large": torch.ones(300_000)}, {})
        assert names(disk) == ["update-00000001", "update-00000002"]
        save_states(disk, 3)  # the half-written one has made room
        expect_state(latest(disk)[0], 3)


def test_read_only_disk_is_told_and_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        save_states(disk, 1)
        make_read_only(disk)
        with pytest.raises(UsageError, match="read-only"):
            save_states(disk, 2)
        expect_state(latest(disk)[0], 1)
