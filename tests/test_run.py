"""The folder of a run: one writer, a log that resumes to the byte, clear refusals."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import small_disk
from hypothesis import given
from hypothesis import strategies as st

from finetune import checkpoint
from finetune.run import LOG, SECONDS, Run, read_log, read_recipe, read_result
from task_formats import UsageError


@pytest.fixture(autouse=True, scope="module")
def _disk_does_not_wait() -> Iterator[None]:
    """Only a power cut could tell the difference, and the tests run much faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(folder: Path, *, finish: bool = False) -> None:
    """A run of one event and one state."""
    with Run.open(folder) as run:
        run.save_recipe("about: a test\n")
        run.log("train", {"update": 1})
        run.save(1, {"a": torch.ones(1)}, {})
        run.model_folder.mkdir()
        if finish:
            run.write_result({"scores": {"accuracy": 0.5}})


def test_run_keeps_what_it_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "rte"
    with Run.open(folder) as run:
        assert not run.finished
        assert run.restore() is None
        run.save_recipe("about: grüße\n")
        run.log("train", {"update": 1, "loss": torch.tensor(0.5), "seconds": {"step": 0.25}})
        run.log("evaluate", {"update": 1, "scores": {"f1": float("nan")}})
        run.write_result({"scores": {"f1": float("inf")}, "update": 1})
        assert run.finished
        assert run.warnings == []
    assert read_recipe(folder) == "about: grüße\n"
    assert read_result(folder) == {"scores": {"f1": None}, "update": 1}
    assert list(read_log(folder)) == [
        {"event": "train", "update": 1, "loss": 0.5, "seconds": {"step": 0.25}},
        {"event": "evaluate", "update": 1, "scores": {"f1": None}},
    ]
    assert SECONDS not in next(read_log(folder, seconds=False))


def test_every_event_is_in_the_file_at_once(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        for update in range(3):
            run.log("train", {"update": update})
            assert len((tmp_path / LOG).read_text().splitlines()) == update + 1


def test_model_and_states_lie_in_the_folder(tmp_path: Path) -> None:
    start(tmp_path, finish=True)
    assert names(tmp_path) == [
        ".lock", "checkpoints", "metrics.jsonl", "model", "recipe.yaml", "result.json",
    ]  # fmt: skip


# Resume.


def train(folder: Path, updates: int, every: int, *, die_after: int | None, resume: bool) -> None:
    """A pretended training: its events depend on the state alone, but for the seconds."""
    logged = 0
    with Run.open(folder, resume=resume) as run:
        state = run.restore()
        weight = state.tensors["weight"] if state else torch.zeros(1)
        run.save_recipe("about: pretended\n")
        for update in range(int(state.facts["update"]) + 1 if state else 1, updates + 1):
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
def test_resumed_log_is_that_of_an_undisturbed_run(
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
        assert list(read_log(resumed, seconds=False)) == list(read_log(whole, seconds=False))
        assert _bytes_without_seconds(resumed) == _bytes_without_seconds(whole)
    assert read_result(resumed) == read_result(whole)


def _bytes_without_seconds(folder: Path) -> list[bytes]:
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    return [line.partition(b', "seconds"')[0] for line in lines]


def test_without_a_state_the_log_begins_anew(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        run.log("train", {"update": 1})
    with Run.open(tmp_path, resume=True) as run:
        assert run.restore() is None
        assert (tmp_path / LOG).read_bytes() == b""
        assert run.warnings == []


@pytest.mark.parametrize(
    ("left", "kept"), [(b"", 0), (b'{"event"', 0), (b'{"event": "x"}\n{"ev', 1)]
)
def test_lost_events_are_told(tmp_path: Path, left: bytes, kept: int) -> None:
    with Run.open(tmp_path) as run:
        for update in (1, 2, 3):
            run.log("train", {"update": update})
        run.save(3, {}, {})
    (tmp_path / LOG).write_bytes(left)
    with Run.open(tmp_path, resume=True) as run:
        assert run.restore() is not None
        assert "events from before the state are lost" in run.warnings[0]
        run.log("train", {"update": 4})
    assert len(list(read_log(tmp_path))) == kept + 1


def test_a_long_line_does_not_hide_the_end_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.files.BLOCK", 7)
    with Run.open(tmp_path) as run:
        run.log("train", {"update": 1})
        run.log("train", {"update": 2, "text": "x" * 100})
        run.save(2, {}, {})
    content = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(content[:-1])
    with Run.open(tmp_path, resume=True) as run:
        run.restore()
    assert [event["update"] for event in read_log(tmp_path)] == [1]


def test_damaged_state_is_told_and_the_one_before_is_used(tmp_path: Path) -> None:
    with Run.open(tmp_path) as run:
        for update in (1, 2):
            run.log("train", {"update": update})
            run.save(update, {"a": torch.tensor(update)}, {"update": update})
    os.truncate(tmp_path / "checkpoints" / "update-00000002" / checkpoint.TENSORS, 9)
    with Run.open(tmp_path, resume=True) as run:
        state = run.restore()
        assert state is not None
        assert state.facts["update"] == state.tensors["a"].item() == 1
        assert "9 bytes, where" in run.warnings[0]
    assert [event["update"] for event in read_log(tmp_path)] == [1]


@pytest.mark.parametrize("size", ["x", None, -5, 1e9, True, [1]])
def test_hostile_place_in_the_log_does_no_harm(tmp_path: Path, size: Any) -> None:
    with Run.open(tmp_path) as run:
        run.log("train", {"update": 1})
    checkpoint.save(tmp_path / "checkpoints", 1, {}, {"log_bytes": size})
    with Run.open(tmp_path, resume=True) as run:
        assert run.restore() is not None
    assert (tmp_path / LOG).read_bytes() == b""


def test_half_written_last_event_is_left_out(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b'{"event": "train", "update": 1}\n{"event": "tr')
    assert list(read_log(tmp_path)) == [{"event": "train", "update": 1}]


@pytest.mark.parametrize(("line", "what"), [(b"{", "not valid JSON"), (b"[1]", "no event")])
def test_broken_event_is_told_with_its_line(tmp_path: Path, line: bytes, what: str) -> None:
    (tmp_path / LOG).write_bytes(b'{"event": "train"}\n' + line + b'\n{"event": "train"}\n')
    with pytest.raises(UsageError, match=what) as caught:
        list(read_log(tmp_path))
    assert caught.value.where == f"{tmp_path / LOG}, line 2"


# Folders that cannot be had.


def test_folder_of_a_run_is_not_taken_without_being_asked(tmp_path: Path) -> None:
    start(tmp_path / "open")
    start(tmp_path / "done", finish=True)
    for name, what, cures in [
        ("open", "has not finished", ["--resume", "--overwrite"]),
        ("done", "finished run", ["another folder", "--overwrite"]),
    ]:
        before = names(tmp_path / name)
        with pytest.raises(UsageError, match=what) as caught:
            Run.open(tmp_path / name)
        assert all(cure in caught.value.cure for cure in cures)
        assert names(tmp_path / name) == before
        with Run.open(tmp_path / name, resume=True) as run:
            assert run.finished == (name == "done")


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    start(tmp_path, finish=True)
    (tmp_path / "notes.txt").write_text("mine")
    with Run.open(tmp_path, overwrite=True) as run:
        assert names(tmp_path) == [".lock", "notes.txt"]
        assert run.restore() is None
        assert not run.finished


@pytest.mark.parametrize("manner", [{}, {"resume": True}, {"overwrite": True}])
def test_folder_of_something_else_is_refused_untouched(
    tmp_path: Path, manner: dict[str, bool]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"no run's: model, thesis\.tex") as caught:
        Run.open(tmp_path, **manner)
    assert "empty folder" in caught.value.cure
    assert names(tmp_path) == ["model", "thesis.tex"]


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    Run.open(tmp_path).close()
    assert names(tmp_path) == [".DS_Store", ".lock"]


def test_copied_run_without_its_lock_is_still_one(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / ".lock").unlink()
    with pytest.raises(UsageError, match="has not finished"):
        Run.open(tmp_path)
    with Run.open(tmp_path, resume=True) as run:
        assert run.restore() is not None


def test_nothing_to_resume_is_told_and_starts_anew(tmp_path: Path) -> None:
    with Run.open(tmp_path / "new", resume=True) as run:
        assert "nothing to resume" in run.warnings[0]
        assert run.restore() is None


def test_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="a part of it is a file"):
            Run.open(folder)


@pytest.mark.parametrize(
    "part", ["model", "checkpoints", LOG, "recipe.yaml", "result.json", ".lock"]
)
def test_nothing_is_written_through_links(tmp_path: Path, part: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    start(tmp_path / "run")
    run_part = tmp_path / "run" / part
    if run_part.is_dir():
        run_part.rename(tmp_path / "spare")
    else:
        run_part.unlink(missing_ok=True)
    run_part.symlink_to(outside if part in ("model", "checkpoints") else outside / "precious")
    with pytest.raises(UsageError, match=r"link|Links"), _resumed(tmp_path / "run") as run:  # noqa: PT012
        run.restore()
        run.save_recipe("about: hostile\n")
        run.write_result({})
    assert (outside / "precious").read_text() == "precious"
    assert names(outside) == ["precious"]


@contextmanager
def _resumed(folder: Path) -> Iterator[Run]:
    with Run.open(folder, resume=True) as run:
        yield run


def test_readers_say_what_kind_of_folder_it_is(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(UsageError, match=r"no result\.json") as caught:
        read_result(tmp_path / "run")
    assert "--resume" in caught.value.cure
    for read in (read_recipe, read_result, lambda folder: list(read_log(folder))):
        with pytest.raises(UsageError, match="no folder of a run"):
            read(tmp_path)
        with pytest.raises(UsageError, match="no folder of a run"):
            read(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_hostile_results_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"result\.json"):
        read_result(tmp_path)


def test_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_recipe(tmp_path)


def test_leftovers_of_a_kill_go_and_a_half_replaced_model_is_put_right(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / ".result.json.0123.partial").write_text("half")
    (tmp_path / "model").rename(tmp_path / "model.old")
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "new").write_text("whole")
    with Run.open(tmp_path, resume=True):
        assert names(tmp_path) == [".lock", "checkpoints", LOG, "model", "recipe.yaml"]
        assert names(tmp_path / "model") == ["new"]


# One writer.


def test_one_process_cannot_open_a_folder_twice(tmp_path: Path) -> None:
    with Run.open(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} on"):
        Run.open(tmp_path, resume=True)
    Run.open(tmp_path, resume=True).close()


def test_refused_folder_is_let_go(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(UsageError, match="has not finished"):
        Run.open(tmp_path)
    Run.open(tmp_path, resume=True).close()


HOLDER = """
    import os, sys, time
    from pathlib import Path
    from finetune import lock
    held = lock.acquire(Path(sys.argv[1], ".lock"))
    if sys.argv[2] == "alone":
        print(0, flush=True)
    elif os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("manner", ["alone", "with a worker"])
def test_second_process_is_refused_until_the_first_is_killed(
    root: Path, tmp_path: Path, manner: str
) -> None:
    """A forked worker that outlives its parent does not keep the folder."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path), manner]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(UsageError, match=f"in use by process {holder.pid} on ") as caught:
                Run.open(tmp_path, resume=True)
            assert caught.value.cure
            with pytest.raises(UsageError, match="in use by"):
                Run.open(tmp_path)
            holder.kill()
            holder.wait()
            Run.open(tmp_path, resume=True).close()
        finally:
            holder.kill()
            if worker:
                os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff" * 2000])
def test_holder_that_has_not_signed_yet(tmp_path: Path, content: bytes) -> None:
    with Run.open(tmp_path):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(UsageError, match="in use by another process"):
            Run.open(tmp_path)


# Bad disks.


def test_full_disk_is_told_and_the_state_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, pytest.raises(UsageError) as caught:  # noqa: PT012
        with Run.open(disk / "run") as run:
            run.log("train", {"update": 1})
            run.save(1, {"a": torch.arange(10)}, {})
            run.write_result({})
            while True:
                run.log("train", {"update": 2, "text": "x" * 50_000})
        raise AssertionError("unreachable")
    assert "No space left" in caught.value.what
    assert "Free some space" in caught.value.cure


def test_failed_save_is_told_at_the_next_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(checkpoint, "write_tensors", fail)
    with Run.open(tmp_path) as run:
        run.save(1, {"a": torch.ones(1)}, {})
        assert run._saver._pending is not None
        run._saver._pending.exception()
        with pytest.raises(UsageError, match="Read-only"):
            run.log("train", {"update": 2})
    assert json.loads((tmp_path / LOG).read_text())["update"] == 2


def test_failed_last_save_is_told_at_the_end_and_the_folder_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", fail)
    with pytest.raises(UsageError, match="No space left"), Run.open(tmp_path) as run:
        run.save(1, {"a": torch.ones(1)}, {})
    Run.open(tmp_path, resume=True).close()


def test_no_result_before_the_last_state_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", fail)
    with Run.open(tmp_path) as run:
        run.save(1, {"a": torch.ones(1)}, {})
        with pytest.raises(UsageError, match="No space left"):
            run.write_result({})
        assert not run.finished
