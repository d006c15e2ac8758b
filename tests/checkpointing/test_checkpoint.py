"""Whole states: what is saved comes back, from the foreground and the background."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from finetune.checkpointing import checkpoint
from finetune.checkpointing.checkpoint import (
    FACTS,
    MANIFEST,
    TENSORS,
    CheckpointWriter,
    latest,
    load,
    save,
)
from task_formats import UsageError
from tests.storage.test_json_files import VALUES
from tests.support.disks import names
from tests.support.states import expect_state, facts_of, save_states, tensors_of

pytestmark = pytest.mark.usefixtures("no_flush")


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


# Saving in the background.


def test_saver_saves_what_was_and_not_what_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    write = checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *a: go.wait() and write(*a))
    saver = CheckpointWriter(tmp_path)
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
    saver = CheckpointWriter(tmp_path)
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

    saver = CheckpointWriter(tmp_path)
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
    saver = CheckpointWriter(tmp_path)
    with pytest.raises(UsageError, match="0 are free"):
        saver.save(1, tensors_of(1), facts_of(1))
    saver.close()
    assert names(tmp_path) == []
