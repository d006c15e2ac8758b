"""Pipes and devices in the place of a user's files: one message, and nothing waits or reads on."""

import os
from pathlib import Path

import pytest

from finetune.data import open_file
from finetune.pretraining import corpus
from task_formats import UsageError

ENDINGS = ["csv", "tsv", "jsonl", "json", "parquet", "csv.gz"]


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link to a device"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_plain_file_is_said_at_once(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    else:
        path.symlink_to("/dev/zero")
    rows = open_file(path)
    for read in (
        lambda: list(rows),
        rows.fingerprint,
        lambda: corpus.fingerprint([path]),
        lambda: list(corpus.read_text(path)),
    ):
        with pytest.raises(UsageError, match="not a regular file"):
            read()


def test_a_link_to_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("a\n1\n")
    (tmp_path / "rows.csv").symlink_to(tmp_path / "real")
    assert [row for _, row in open_file(tmp_path / "rows.csv")] == [{"a": "1"}]
    assert "".join(corpus.read_text(tmp_path / "rows.csv")) == "a\n1\n"
