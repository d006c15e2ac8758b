"""Checkpoints: what is saved comes back, from the foreground and the background."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from finetune.checkpointing import checkpoint
from finetune.checkpointing.checkpoint import (
    MANIFEST,
    METADATA,
    TENSORS,
    CheckpointWriter,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
)
from tests.storage.test_json_files import VALUES
from tests.support.checkpoints import (
    assert_checkpoint,
    metadata_of,
    save_checkpoints,
    tensors_of,
)
from tests.support.disks import names


def test_the_newest_checkpoint_comes_back(tmp_path: Path) -> None:
    save_checkpoints(tmp_path, 9, 10)
    newest, warnings = load_latest_checkpoint(tmp_path)
    assert_checkpoint(newest, 10)
    assert warnings == []
    assert newest is not None
    assert newest.path == tmp_path / "update-00000010"
    assert names(newest.path) == [MANIFEST, METADATA, TENSORS]


@given(value=VALUES)
def test_any_metadata_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "metadata"
    save_checkpoint(folder, 1, {}, {"value": value})
    newest, _ = load_latest_checkpoint(folder)
    assert newest is not None
    # repr, because NaN is not equal to itself.
    assert repr(newest.metadata) == repr({"value": value})


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    save_checkpoints(tmp_path, 1, 20, 300, 4000)
    assert names(tmp_path) == ["update-00000300", "update-00004000"]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "update-x").mkdir()
    assert load_latest_checkpoint(tmp_path) == (None, [])
    assert load_latest_checkpoint(tmp_path / "missing") == (None, [])
    save_checkpoints(tmp_path, 1, 2, 3)
    assert {"notes.txt", "update-x"} < set(names(tmp_path))


def test_saving_an_earlier_update_deletes_the_later_ones(tmp_path: Path) -> None:
    save_checkpoints(tmp_path, 100, 200)
    (tmp_path / "update-00000200" / METADATA).write_text("{}")
    newest, warnings = load_latest_checkpoint(tmp_path)
    assert_checkpoint(newest, 100)
    assert len(warnings) == 1
    save_checkpoints(tmp_path, 150)
    assert names(tmp_path) == ["update-00000100", "update-00000150"]
    assert load_latest_checkpoint(tmp_path)[1] == []


def test_the_writer_saves_what_was_and_not_what_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    save = checkpoint.save_tensors
    monkeypatch.setattr(checkpoint, "save_tensors", lambda *a: go.wait() and save(*a))
    writer = CheckpointWriter(tmp_path)
    tensors, metadata = tensors_of(1), metadata_of(1)
    writer.save(1, tensors, metadata)
    tensors["weight"].zero_()
    metadata["names"].append("later")
    writer.poll()
    assert load_latest_checkpoint(tmp_path) == (None, [])
    go.set()
    writer.wait()
    assert_checkpoint(load_latest_checkpoint(tmp_path)[0], 1)


def test_the_writer_keeps_the_memory_of_its_copies(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    addresses = []
    for update in (1, 2, 3):
        writer.save(update, tensors_of(update), metadata_of(update))
        addresses.append({name: copy.data_ptr() for name, copy in writer._copies.items()})
    writer.save(4, {"weight": torch.ones(2), "new": torch.ones(3)}, {})
    assert addresses[0] == addresses[1] == addresses[2]
    writer.wait()
    assert_checkpoint(load_checkpoint(tmp_path / "update-00000003"), 3)
    assert load_checkpoint(tmp_path / "update-00000004").tensors.keys() == {"weight", "new"}
