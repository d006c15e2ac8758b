"""`gptft doctor`: the installation, and the rows of a task or a run."""

import json
import os
from pathlib import Path

import torch

from finetune.cli import main
from tests.support.jobs import write_rows


def run(capsys, *words: str) -> str:
    assert main(["doctor", *words]) == 0
    return capsys.readouterr().out


def find(output: str, subject: str) -> list[str]:
    """The findings about a subject, with the mark of problems."""
    lines = (line for line in output.splitlines() if line[2:].startswith(f"{subject:<12} "))
    return [line[:2].strip() + line[2:].removeprefix(subject).strip() for line in lines]


def test_it_tells_versions_device_precision_folders_and_hub(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    output = run(capsys)
    [packages] = find(output, "packages")
    assert f"torch {torch.__version__}" in packages
    [threads] = find(output, "threads")
    assert threads.startswith(f"torch uses {torch.get_num_threads()} of ")
    [cache] = find(output, "cache")
    assert cache.lstrip("!").startswith(str(tmp_path / "cache"))
    assert find(output, "hub") == ["not reachable: only local bases and data sets, and cached ones"]
    for subject in ("versions", "device", "precision", "memory", "disk"):
        assert len(find(output, subject)) == 1


def test_a_cache_that_cannot_be_written_is_a_problem(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode)
    )
    output = run(capsys)
    assert find(output, "cache") == [f"!{tmp_path / 'cache'} cannot be written"]
    assert "problem" in output.splitlines()[-1]


def test_it_looks_at_the_rows_of_a_task_and_of_a_run(trained, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.folder)
    for target in ("mine.yaml", str(trained.run)):
        output = run(capsys, target)
        assert any("held-out.jsonl: 12 examples" in text for text in find(output, "evaluate"))
        assert any(" 48 tokens" in text for text in find(output, "train"))


def test_bad_rows_overlap_and_truncation_are_problems(task, capsys, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    long = {**rows[0], "premise": "rain " * 100}
    write_rows(tmp_path / "dev.jsonl", [*rows[:6], long, {**rows[1], "premise": " "}])
    output = run(capsys, task, "--base", "tiny", "--max-tokens", "24")
    texts = find(output, "evaluate")
    assert any(text.startswith("!1 row cannot be used; the first: ") for text in texts)
    assert any(text.startswith("!6 rows (85.7%) are also in train") for text in texts)
    assert any(text.startswith("!") and "are truncated to 24 tokens" in text for text in texts)


def test_what_cannot_be_read_does_not_hide_the_rest(task, capsys, tmp_path):
    (tmp_path / "dev.jsonl").unlink()
    output = run(capsys, task, "--base", "./no-such-base")
    assert any(text.startswith("labels: ") for text in find(output, "train"))
    [missing] = find(output, "evaluate")
    assert missing.startswith("!")
    assert "dev.jsonl" in missing
    [base] = find(output, "base")
    assert base.startswith("!base.path: no such folder: ./no-such-base. Give a folder")
    assert output.splitlines()[-1].endswith(" problems")


def test_a_folder_without_a_run_is_refused(capsys, tmp_path):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "Not a run directory" in capsys.readouterr().err
