"""Run folders that are refused, and one writer at a time."""

import os
import signal
import time
from itertools import product
from pathlib import Path

import pytest
import torch

from finetune.checkpointing.run_folder import LOG, MARKER, RunFolder, read_recipe, read_result
from finetune.storage import files
from task_formats import UsageError
from tests.support import processes
from tests.support.disks import names


def start(folder: Path, *, finish: bool = False) -> None:
    """A run of one event and one checkpoint."""
    with RunFolder.open(folder) as run:
        run.write_recipe("about: a test\n")
        run.log("train", {"update": 1})
        run.save(1, {"a": torch.ones(1)}, {})
        run.model_folder.mkdir()
        if finish:
            run.write_result({"scores": {"accuracy": 0.5}, "made_with": {}})


@pytest.mark.parametrize(
    ("finish", "what", "cures"),
    [
        (False, "is not finished", ["--resume", "--overwrite"]),
        (True, "finished run", ["another directory", "--overwrite"]),
    ],
)
def test_an_existing_run_needs_resume_or_overwrite(
    tmp_path: Path, finish: bool, what: str, cures: list[str]
) -> None:
    start(tmp_path, finish=finish)
    before = names(tmp_path)
    with pytest.raises(UsageError, match=what) as caught:
        RunFolder.open(tmp_path)
    assert all(cure in caught.value.cure for cure in cures)
    assert names(tmp_path) == before
    with RunFolder.open(tmp_path, resume=True) as run:  # The refusal has unlocked it.
        assert run.finished == finish


def test_overwrite_deletes_only_the_run(tmp_path: Path) -> None:
    start(tmp_path, finish=True)
    (tmp_path / "notes.txt").write_text("mine")
    before = names(tmp_path)
    with RunFolder.open(tmp_path, overwrite=True) as run:
        assert names(tmp_path) == before, "nothing before the data and the base are checked"
        assert not run.finished
        run.delete_overwritten()
        assert names(tmp_path) == [MARKER, ".lock", "notes.txt"]
        assert run.resume() is None


def test_overwrite_deletes_what_a_kill_left_and_links_but_not_their_targets(tmp_path: Path) -> None:
    start(tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "run" / "model.old")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "checkpoints")
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "checkpoints")
    with RunFolder.open(tmp_path / "run", overwrite=True) as run:
        run.delete_overwritten()
        assert names(tmp_path / "run") == [MARKER, ".lock"]
    assert names(tmp_path / "checkpoints") == ["update-00000001"]


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--resume and --overwrite exclude") as caught:
        RunFolder.open(tmp_path / "run", resume=True, overwrite=True)
    assert "--resume to continue" in caught.value.cure
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, options: dict[str, bool]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty: it holds model, thesis\.tex") as caught:
        RunFolder.open(tmp_path, **options)
    assert "empty directory" in caught.value.cure
    assert names(tmp_path) == ["model", "thesis.tex"]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", ["recipe.yaml", "result.json", LOG, "checkpoints"])
def test_a_project_with_names_of_a_run_is_no_run(
    tmp_path: Path, name: str, options: dict[str, bool]
) -> None:
    (tmp_path / "model").mkdir()
    if name == "checkpoints":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text('{"event": "started", "scores": 1}\n')
    before = names(tmp_path)
    with pytest.raises(UsageError, match="Directory is not empty") as caught:
        RunFolder.open(tmp_path, **options)
    assert "--" not in caught.value.cure
    assert names(tmp_path) == before
    for read in (read_recipe, read_result):
        if name not in ("recipe.yaml", "result.json"):
            with pytest.raises(UsageError, match="Not a run directory"):
                read(tmp_path)


@pytest.mark.parametrize("kept", ["result.json", LOG, "checkpoints"])
def test_a_run_is_recognized_without_its_hidden_files(tmp_path: Path, kept: str) -> None:
    """Copies have none; runs of older versions have no marker."""
    start(tmp_path, finish=True)
    for name in {MARKER, ".lock", "result.json", LOG, "checkpoints"} - {kept}:
        files.remove(tmp_path / name)
    with pytest.raises(UsageError, match=r"holds a (finished )?run"):
        RunFolder.open(tmp_path)
    with RunFolder.open(tmp_path, resume=True) as run:
        assert (run.resume() is not None) == (kept == "checkpoints")
    assert (tmp_path / MARKER).exists()


def test_a_run_that_has_not_begun_leaves_no_marker(tmp_path: Path) -> None:
    RunFolder.open(tmp_path).close()
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty: it holds recipe\.yaml"):
        RunFolder.open(tmp_path, overwrite=True)


def test_resuming_an_empty_folder_starts_a_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "new", resume=True) as run:
        assert "nothing to resume" in run.warnings[0]


def test_a_file_at_the_path_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="a part of it is a file"):
            RunFolder.open(folder)


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
    with pytest.raises(UsageError, match=r"is not inside this folder|Links are not followed"):
        write_everything(tmp_path / "run")
    assert (outside / "precious").read_text() == "precious"
    assert names(outside) == ["precious"]


def write_everything(folder: Path) -> None:
    with RunFolder.open(folder, resume=True) as run:
        run.resume()
        run.write_recipe("about: hostile\n")
        run.write_result({})


def test_readers_say_what_is_missing(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(UsageError, match=r"result\.json is missing") as caught:
        read_result(tmp_path / "run")
    assert "gptft resume" in caught.value.cure
    for read, folder in product((read_recipe, read_result), (tmp_path, tmp_path / "missing")):
        with pytest.raises(UsageError, match="Not a run directory"):
            read(folder)


@pytest.mark.parametrize("content", [b"[]", b"{"])
def test_invalid_results_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"result\.json"):
        read_result(tmp_path)


def test_what_a_kill_left_is_cleaned_up(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / ".result.json.0123.partial").write_text("half")
    (tmp_path / "model").rename(tmp_path / "model.old")
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "new").write_text("whole")
    (tmp_path / "checkpoints/update-00000001").rename(tmp_path / "checkpoints/update-00000001.old")
    with RunFolder.open(tmp_path, resume=True) as run:
        assert run.resume() is not None
        assert names(tmp_path) == [MARKER, ".lock", "checkpoints", LOG, "model", "recipe.yaml"]
        assert names(tmp_path / "model") == ["new"]


def hold(folder: Path, worker: Path) -> int:
    """Opens a run, and writes the id of a forked worker to a file."""
    with RunFolder.open(folder):
        if os.fork() == 0:
            worker.with_suffix(".new").write_text(str(os.getpid()))
            worker.with_suffix(".new").rename(worker)
        time.sleep(600)
    return 0


def test_a_killed_process_unlocks_the_folder(tmp_path: Path) -> None:
    """Even if a worker that it has forked is still alive."""
    run, worker = tmp_path / "run", tmp_path / "worker"
    holder = processes.start(hold, run, worker, output=tmp_path / "log")
    while not worker.exists():
        assert holder.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.01)
    try:
        with pytest.raises(UsageError, match=f"in use by process {holder.pid} on ") as caught:
            RunFolder.open(run, resume=True)
        assert "Wait until it ends" in caught.value.cure
        holder.kill()
        holder.join()
        RunFolder.open(run, resume=True).close()
    finally:
        holder.kill()
        os.kill(int(worker.read_text()), signal.SIGKILL)


def test_a_path_that_is_not_utf_8_is_refused_before_training(tmp_path) -> None:
    """The tokenizer could not be saved there, when training is done."""
    folder = tmp_path / "run\udcff"
    with pytest.raises(UsageError, match="not valid UTF-8"):
        RunFolder.open(folder)
    assert not folder.exists()
