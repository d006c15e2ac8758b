"""Damaged, mixed-up and hostile checkpoints: each is reported, none is used."""

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
from finetune.checkpointing.checkpoint import (
    FORMAT,
    MANIFEST,
    METADATA,
    TENSORS,
    load_checkpoint,
    load_latest_checkpoint,
)
from task_formats import UsageError
from tests.support.checkpoints import assert_checkpoint, save_checkpoints
from tests.support.disks import names

DAMAGES = (
    "bit", "bit", "bit", "cut", "longer", "zeros", "missing", "link", "folder", "of another",
    "swap", "manifest",
)  # fmt: skip
CORRUPTIONS = 240


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Damages a checkpoint, in a random file and place."""
    names = [TENSORS, METADATA, MANIFEST]
    # In a manifest a bit may change nothing: white space.
    file = path / draw.choice(names[:2] if kind == "bit" else names)
    content = file.read_bytes()
    place = draw.randrange(len(content) // 2)
    match kind:
        case "bit":
            flipped = content[place] ^ 1 << draw.randrange(8)
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        case "cut":
            file.write_bytes(content[:place])
        case "longer":
            file.write_bytes(content + b"x" + draw.randbytes(place))
        case "zeros":  # As some file systems leave a file after a power cut.
            file.write_bytes(content[:place].ljust(len(content), b"\0"))
        case "missing":
            file.unlink()
        case "link":
            file.symlink_to(file.rename(path.parent.parent / f"moved-{file.name}"))
        case "folder":
            file.unlink()
            file.mkdir()
        case "of another":
            # From an older checkpoint if there is one: a newer one may be damaged alike.
            others = sorted(other for other in path.parent.iterdir() if other != path)
            other = draw.choice([other for other in others if other < path] or others)
            shutil.copy(other / file.name, file)
        case "swap":
            other = path / draw.choice([name for name in names if name != file.name])
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case "manifest":
            edit_manifest(path / MANIFEST, draw.randrange(4))


def edit_manifest(path: Path, number: int) -> None:
    manifest = json.loads(path.read_text())
    match number:
        case 0:
            manifest["format"] = "gptft checkpoint, version 3"
        case 1:
            manifest["files"][TENSORS]["sha256"] = "0" * 64
        case 2:
            manifest["files"]["../../outside"] = manifest["files"].pop(METADATA)
        case _:
            del manifest["files"][METADATA]
    path.write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "KEEP", 3)
        save_checkpoints(folder, 1, 2, 3)
    return folder


def test_every_corruption_is_detected(three_checkpoints: Path, tmp_path: Path) -> None:
    """All are reported, and the newest checkpoint that is not damaged is used."""
    for seed in range(CORRUPTIONS):
        draw = random.Random(seed)
        folder = tmp_path / str(seed) / "checkpoints"
        shutil.copytree(three_checkpoints, folder)
        # Mostly the newest; sometimes the newest two, or an older one alone.
        damaged = draw.choice([[3], [3], [3, 2], [2], [1]])
        for update in damaged:
            damage(folder / f"update-{update:08d}", DAMAGES[seed % len(DAMAGES)], draw)
        for update in damaged:
            with pytest.raises(UsageError, match=f"update-{update:08d}"):
                load_checkpoint(folder / f"update-{update:08d}")
        newest, warnings = load_latest_checkpoint(folder)
        expected = next(update for update in (3, 2, 1) if update not in damaged)
        assert_checkpoint(newest, expected)
        assert len(warnings) == 3 - expected
        shutil.rmtree(tmp_path / str(seed))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: os.truncate(path / TENSORS, 100), "damaged"),
        (lambda path: os.truncate(path / MANIFEST, 0), "not valid JSON"),
        (lambda path: (path / METADATA).unlink(), "No such file"),
        (lambda path: (path / MANIFEST).write_text("[]"), "the format is not"),
    ],
)
def test_a_warning_names_the_file_and_the_reason(
    tmp_path: Path, damage: Callable[[Path], Any], what: str
) -> None:
    save_checkpoints(tmp_path, 1, 2)
    damage(tmp_path / "update-00000002")
    newest, (warning,) = load_latest_checkpoint(tmp_path)
    assert_checkpoint(newest, 1)
    assert f"{tmp_path}/update-00000002/" in warning
    assert what in warning
    assert "not used" in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (b"", b"{}"),
        (bytes(8), b"{}"),
        (b"\x02" + bytes(7) + b"{}", b"[" * 100_000),
    ],
)
def test_faulty_content_with_a_right_manifest_is_refused(
    tmp_path: Path, tensors: bytes, metadata: bytes
) -> None:
    path = tmp_path / "update-00000001"
    path.mkdir()
    records = {}
    for name, content in ((TENSORS, tensors), (METADATA, metadata)):
        (path / name).write_bytes(content)
        records[name] = {"size": len(content), "sha256": sha256(content).hexdigest()}
    manifest = {"format": FORMAT, "files": records, "metadata": {}}
    (path / MANIFEST).write_text(json.dumps(manifest))
    newest, warnings = load_latest_checkpoint(tmp_path)
    assert newest is None
    assert len(warnings) == 1


def test_links_in_the_folder_are_deleted_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / MANIFEST).write_text("precious")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("update-00000007", "update-00000008.partial", "update-00000002.old"):
        (folder / name).symlink_to(precious)
    assert load_latest_checkpoint(folder)[0] is None
    save_checkpoints(folder, 1, 2)
    assert names(folder) == ["update-00000001", "update-00000002"]
    assert (precious / MANIFEST).read_text() == "precious"


def test_checkpoints_of_an_older_version_are_refused_with_a_cure(tmp_path: Path) -> None:
    older = tmp_path / "update-00000001"
    older.mkdir()
    (older / "facts.json").write_text("{}")
    with pytest.raises(UsageError, match="an older version of gptft saved") as caught:
        checkpoint.load_latest_checkpoint(tmp_path)
    assert "--overwrite" in caught.value.cure
