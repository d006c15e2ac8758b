"""Whole states: what is saved comes back, and what is not whole is never used."""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import make_read_only, small_disk
from hypothesis import given
from test_json_text import VALUES
from torch import Tensor

from finetune import checkpoint, files, json_text
from finetune.checkpoint import FACTS, MANIFEST, TENSORS, Saver, latest, load, save
from task_formats import UsageError


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture(autouse=True, scope="module")
def _disk_does_not_wait() -> Iterator[None]:
    """Only a power cut could tell the difference, and the tests run much faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def tensors_of(update: int) -> dict[str, Tensor]:
    """Tensors that no other update has, of several types."""
    draw = torch.Generator().manual_seed(update)
    weight = torch.randn(7, 5, generator=draw)
    return {
        "weight": weight,
        "tied": weight,
        "half": weight.T.bfloat16(),
        "step": torch.tensor(float(update)),
        "generator": draw.get_state(),
        "empty": torch.empty(0, 3, dtype=torch.int64),
    }


def facts_of(update: int) -> dict[str, Any]:
    names = ["a", "ü\ud800"]
    return {"update": update, "best": float("-inf"), "names": names, "rate": 0.1 * update}


def expect_state(state: checkpoint.State | None, update: int) -> None:
    """The state holds the very tensors and facts of that update."""
    assert state is not None
    assert state.facts == facts_of(update)
    expected = tensors_of(update)
    assert state.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state.tensors[name].dtype == tensor.dtype
        assert torch.equal(state.tensors[name], tensor)


def save_states(folder: Path, *updates: int) -> None:
    for update in updates:
        save(folder, update, tensors_of(update), facts_of(update))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_state_comes_back(tmp_path: Path) -> None:
    save_states(tmp_path, 9, 10)
    state, warnings = latest(tmp_path)
    expect_state(state, 10)
    assert warnings == []
    assert state is not None
    assert state.path == tmp_path / "update-00000010"
    assert names(state.path) == [FACTS, MANIFEST, TENSORS]


@given(value=VALUES)
def test_any_facts_come_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "facts"
    save(folder, 1, {}, {"value": value})
    state, _ = latest(folder)
    assert state is not None
    assert repr(state.facts) == repr({"value": value})


def test_last_two_states_stay(tmp_path: Path) -> None:
    save_states(tmp_path, 1, 20, 300, 4000)
    assert names(tmp_path) == ["update-00000300", "update-00004000"]


def test_nothing_saved_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "update-x").mkdir()
    assert latest(tmp_path) == (None, [])
    assert latest(tmp_path / "missing") == (None, [])
    save_states(tmp_path, 1, 2, 3)
    assert {"notes.txt", "update-x"} < set(names(tmp_path))


def test_states_of_a_future_given_up_go(tmp_path: Path) -> None:
    save_states(tmp_path, 100, 200)
    (tmp_path / "update-00000200" / FACTS).write_text("{}")
    state, warnings = latest(tmp_path)
    expect_state(state, 100)
    assert len(warnings) == 1
    save_states(tmp_path, 150)
    assert names(tmp_path) == ["update-00000100", "update-00000150"]
    assert latest(tmp_path)[1] == []


def test_same_update_can_be_saved_again(tmp_path: Path) -> None:
    save_states(tmp_path, 1, 2)
    save(tmp_path, 2, tensors_of(5), facts_of(5))
    expect_state(latest(tmp_path)[0], 5)
    assert names(tmp_path) == ["update-00000001", "update-00000002"]


def test_wrong_use_is_told_before_anything_is_written(tmp_path: Path) -> None:
    for tensors, facts in [
        ({"a": torch.eye(2).to_sparse()}, {}),
        ({}, {"a": object()}),
        ({"a": torch.eye(2, device="meta")}, {}),
    ]:
        with pytest.raises(TypeError):
            save(tmp_path, 1, tensors, facts)
    assert names(tmp_path) == []


# Damage. Each takes the folder of a state and a random source.


def truncate(state: Path, draw: random.Random) -> None:
    path = state / draw.choice([TENSORS, FACTS, MANIFEST])
    os.truncate(path, draw.randrange(path.stat().st_size))


def flip(state: Path, draw: random.Random) -> None:
    path = state / draw.choice([TENSORS, FACTS, MANIFEST])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def delete(state: Path, draw: random.Random) -> None:
    (state / draw.choice([TENSORS, FACTS, MANIFEST])).unlink()


def lengthen(state: Path, draw: random.Random) -> None:
    with open(state / draw.choice([TENSORS, FACTS, MANIFEST]), "ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 20)))


def blank(state: Path, draw: random.Random) -> None:
    """A block of zeros, as some file systems leave after a power cut."""
    path = state / draw.choice([TENSORS, FACTS, MANIFEST])
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content) - 8)
    content[start:] = bytes(len(content) - start)
    path.write_bytes(content)


def replace_at_random(state: Path, draw: random.Random) -> None:
    path = state / draw.choice([TENSORS, FACTS, MANIFEST])
    path.write_bytes(draw.randbytes(path.stat().st_size))


def another(state: Path, draw: random.Random) -> Path:
    """An older state; for the oldest, a newer one: never one that holds this one's files."""
    others = sorted(other for other in state.parent.iterdir() if other != state)
    return draw.choice([other for other in others if other < state] or others)


def take_from_another_state(state: Path, draw: random.Random) -> None:
    name = draw.choice([TENSORS, FACTS, MANIFEST])
    shutil.copy(another(state, draw) / name, state / name)


def mix_up_files(state: Path, draw: random.Random) -> None:
    first, second = draw.sample([TENSORS, FACTS, MANIFEST], 2)
    (state / first).rename(state / "spare")
    (state / second).rename(state / first)
    (state / "spare").rename(state / second)


def take_the_place_of(state: Path, draw: random.Random) -> None:
    """All files of another state, under the name of this one."""
    other = another(state, draw)
    shutil.rmtree(state)
    shutil.copytree(other, state)


def edit_facts(state: Path, draw: random.Random) -> None:
    facts = json.loads((state / FACTS).read_text())
    facts[draw.choice(["update", "rate"])] = draw.random()
    (state / FACTS).write_bytes(json_text.encode(facts))


def edit_manifest(state: Path, draw: random.Random) -> None:
    """Another format, other hashes or another name, with the old seal or none."""
    manifest = json.loads((state / MANIFEST).read_text())
    match draw.randrange(5):
        case 0:
            manifest["format"] = "gptft checkpoint, version 2"
        case 1:
            manifest["files"][TENSORS]["sha256"] = "0" * 64
        case 2:
            manifest["files"]["../../outside"] = manifest["files"].pop(FACTS)
        case 3:
            manifest["name"] = "update-00000004"
        case _:
            del manifest["seal"]
    (state / MANIFEST).write_bytes(json_text.encode(manifest, indent=1))


def put_a_link(state: Path, draw: random.Random) -> None:
    path = state / draw.choice([TENSORS, FACTS, MANIFEST, "."])
    path = path.resolve()
    moved = state.parent.parent / f"moved-{path.name}"
    path.rename(moved)
    path.symlink_to(moved)


def put_a_folder(state: Path, draw: random.Random) -> None:
    path = state / draw.choice([TENSORS, FACTS, MANIFEST])
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    truncate, flip, flip, flip, delete, lengthen, blank, replace_at_random, take_from_another_state,
    mix_up_files, take_the_place_of, edit_facts, edit_manifest, put_a_link, put_a_folder,
]  # fmt: skip
CORRUPTIONS = 300


@pytest.fixture(scope="module")
def three_states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the whole states 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "KEEP", 3)
        save_states(folder, 1, 2, 3)
    return folder


def test_every_corruption_is_detected(three_states: Path, tmp_path: Path) -> None:
    """300 of 300 are found and told; the newest state that is whole is used, and it is right."""
    detected, told = 0, set()
    for seed in range(CORRUPTIONS):
        draw = random.Random(seed)
        folder = tmp_path / str(seed) / "checkpoints"
        shutil.copytree(three_states, folder)
        # Mostly the newest; sometimes the newest two, or an older one alone.
        victims = draw.choice([[3], [3], [3, 2], [2], [1]])
        for update in victims:
            DAMAGES[seed % len(DAMAGES)](folder / f"update-{update:08d}", draw)
        for update in victims:
            with pytest.raises(UsageError, match=f"update-{update:08d}") as caught:
                load(folder / f"update-{update:08d}")
            told.add(caught.value.what.partition(":")[0])
        state, warnings = latest(folder)
        whole = next(update for update in (3, 2, 1) if update not in victims)
        expect_state(state, whole)
        assert len(warnings) == 3 - whole
        detected += 1
        shutil.rmtree(tmp_path / str(seed))
    assert detected == CORRUPTIONS
    assert {"a link, not a folder", "No such file or directory", "damaged"} < told


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda state: os.truncate(state / TENSORS, 100), "100 bytes, where"),
        (lambda state: os.truncate(state / FACTS, 0), "0 bytes, where"),
        (lambda state: os.truncate(state / MANIFEST, 0), "not valid JSON"),
        (lambda state: (state / MANIFEST).unlink(), "No such file"),
        (lambda state: (state / FACTS).unlink(), "No such file"),
        (lambda state: (state / FACTS).write_text("{}"), "2 bytes, where"),
        (lambda state: os.mkfifo(state / "x") or (state / "x").rename(state / FACTS), "plain file"),
        (lambda state: (state / MANIFEST).write_text("[]"), "not of the format"),
    ],
)
def test_damage_is_told_with_file_and_reason(
    tmp_path: Path, damage: Callable[[Path], Any], what: str
) -> None:
    save_states(tmp_path, 1, 2)
    damage(tmp_path / "update-00000002")
    state, (warning,) = latest(tmp_path)
    expect_state(state, 1)
    assert f"{tmp_path}/update-00000002/" in warning
    assert what in warning
    assert "not used" in warning
    assert "\n" not in warning


def seal(state: Path, manifest: Any) -> None:
    """Write a manifest as a hostile stranger would: with the right seal."""
    body = {"format": checkpoint.FORMAT, "name": state.name, **manifest}
    digest = sha256(json_text.encode(body)).hexdigest()
    (state / MANIFEST).write_bytes(json_text.encode({**body, "seal": digest}, indent=1))


def entry(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": sha256(content).hexdigest()}


DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("tensors", "facts", "manifest"),
    [
        (b"", b"{}", {}),
        (bytes(8), b"{}", {}),
        (b"\x02" + bytes(7) + b"{}", b"[]", {}),
        (b"\x02" + bytes(7) + b"{}", b"NaN", {}),
        (b"\x02" + bytes(7) + b"{}", b"[" * 100_000, {}),
        (b"", b"{}", {"files": None}),
        (b"", b"{}", {"files": {TENSORS: 1, FACTS: 2}}),
        (b"", b"{}", {"files": {TENSORS: {"bytes": "x"}, FACTS: {}}}),
        (b"", b"{}", {"files": {TENSORS: entry(b""), "/etc/passwd": entry(b"")}}),
        (b"", b"{}", {"name": DEEP}),
        (b"", b"{}", {"name": ["update-00000001"]}),
        (b"", b"{}", {"format": DEEP}),
    ],
)
def test_hostile_states_are_refused(
    tmp_path: Path, tensors: bytes, facts: bytes, manifest: dict[str, Any]
) -> None:
    state = tmp_path / "update-00000001"
    state.mkdir()
    (state / TENSORS).write_bytes(tensors)
    (state / FACTS).write_bytes(facts)
    seal(state, {"files": {TENSORS: entry(tensors), FACTS: entry(facts)}, **manifest})
    found, warnings = latest(tmp_path)
    assert found is None
    assert len(warnings) == 1


def test_link_at_the_place_of_a_state_is_not_followed_when_it_goes(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / MANIFEST).write_text("precious")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "update-00000007").symlink_to(precious)
    (folder / "update-00000008.partial").symlink_to(precious)
    (folder / "update-00000002.old").symlink_to(precious)
    assert latest(folder)[0] is None
    save_states(folder, 1, 2)
    assert names(folder) == ["update-00000001", "update-00000002"]
    assert (precious / MANIFEST).read_text() == "precious"


# Kills and bad disks.


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
    from finetune.checkpoint import latest, save

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
    monkeypatch.setattr(files, "require_space", lambda folder, size: None)
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


# Saving in the background.


def test_saver_saves_what_was_and_not_what_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *a: go.wait() and write(*a))
    saver = Saver(tmp_path)
    tensors, facts = tensors_of(1), facts_of(1)
    saver.save(1, tensors, facts)
    tensors["weight"].zero_()
    facts["names"].append("later")
    saver.poll()
    assert latest(tmp_path)[0] is None
    go.set()
    saver.close()
    expect_state(latest(tmp_path)[0], 1)


def test_saver_keeps_the_memory_of_its_copies(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    places = []
    for update in (1, 2, 3):
        saver.save(update, tensors_of(update), facts_of(update))
        places.append({name: copy.data_ptr() for name, copy in saver._copies.items()})
    saver.save(4, {"weight": torch.ones(2), "new": torch.ones(3)}, {})
    assert places[0] == places[1] == places[2]
    saver.wait()
    expect_state(load(tmp_path / "update-00000003"), 3)
    assert load(tmp_path / "update-00000004").tensors.keys() == {"weight", "new"}
    saver.close()


@pytest.mark.parametrize("call", ["poll", "wait", "close", "save"])
def test_saver_raises_what_went_wrong_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    saver = Saver(tmp_path)
    saver.save(1, tensors_of(1), facts_of(1))
    saver.wait()
    monkeypatch.setattr(checkpoint, "write_tensors", fail)
    saver.save(2, tensors_of(2), facts_of(2))
    assert saver._pending is not None
    assert isinstance(saver._pending.exception(), UsageError)
    with pytest.raises(UsageError, match="No space left"):
        getattr(saver, call)(*((3, {}, {}) if call == "save" else ()))
    saver.close()  # said once
    expect_state(latest(tmp_path)[0], 1)
    assert names(tmp_path) == ["update-00000001"]


def test_saver_tells_a_full_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 0))
    saver = Saver(tmp_path)
    with pytest.raises(UsageError, match="0 are free"):
        saver.save(1, tensors_of(1), facts_of(1))
    saver.close()
    assert names(tmp_path) == []
