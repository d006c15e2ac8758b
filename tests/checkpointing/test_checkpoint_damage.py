"""Damaged, mixed-up and hostile states: each is told, none is used."""

import json
import os
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from finetune.checkpointing import checkpoint
from finetune.checkpointing.checkpoint import FACTS, MANIFEST, TENSORS, latest, load
from finetune.storage import json_files as json_text
from task_formats import UsageError
from tests.support.disks import names
from tests.support.states import expect_state, save_states

pytestmark = pytest.mark.usefixtures("no_flush")


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
