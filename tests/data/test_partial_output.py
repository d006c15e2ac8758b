"""Output appears as it is made, and an interrupted one is gone on with to the same bytes."""

import gzip
import os
from pathlib import Path

import pytest

from finetune.data import read_rows
from finetune.data.partial_output import name_part, open_partial_output
from task_formats import UsageError

FORMATS = ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "json", "parquet"]
ROWS = [{"text": f"é {n}", "score": n / 7} for n in range(10)]


def write(path: Path, commits: list[int], *, stop: bool = False, extra: int = 0, **options) -> None:
    """Writes all rows that are not there yet, committed at some numbers of rows."""
    with open_partial_output(path, ["text", "score"], **options) as output:
        for number in range(output.rows, len(ROWS)):
            output.write(ROWS[number])
            if number + 1 in commits:
                output.commit(number + 1, f"digest {number + 1}")
                if stop and number + 1 == commits[-1]:
                    for row in ROWS[number + 1 : number + 1 + extra]:
                        output.write(row)
                    raise KeyboardInterrupt


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("extra", [0, 2], ids=["at a commit", "after more rows"])
def test_a_resumed_output_has_the_same_bytes(ending, extra, tmp_path):
    whole, cut = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    write(whole, [4, 8])
    with pytest.raises(KeyboardInterrupt):
        write(cut, [4], stop=True, extra=extra)
    assert not cut.exists()
    with pytest.raises(KeyboardInterrupt):
        write(cut, [4, 8], stop=True, resume=True)
    write(cut, [4, 8], resume=True)
    assert cut.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == [cut.name, whole.name]
    assert [row["text"] for _, row in read_rows(cut)] == [row["text"] for row in ROWS]


def test_rows_can_be_read_while_others_are_made(tmp_path):
    for name, unpack in (("a.csv", bytes), ("a.csv.gz", gzip.decompress)):
        with open_partial_output(tmp_path / name, ["text", "score"]) as output:
            for number in (1, 2):
                output.write(ROWS[number])
                output.commit(number, "")
                part = name_part(tmp_path / name).read_bytes()
                assert len(unpack(part).decode().splitlines()) == 1 + number


def test_an_interrupted_output_is_not_overwritten_by_accident(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(path, [4], stop=True, made_from={"the run": "a"})
    with pytest.raises(UsageError, match=r"out\.csv\.part: holds 4 rows") as caught:
        write(path, [])
    assert "--resume" in caught.value.cure
    with pytest.raises(UsageError, match="the run, the rate changed since"):
        write(path, [], resume=True, made_from={"the run": "b", "the rate": 1})
    assert path.read_text() == "old"
    write(path, [], overwrite=True)
    assert len(list(read_rows(path))) == len(ROWS)
    assert os.listdir(tmp_path) == ["out.csv"]


def test_an_output_without_rows_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_partial_output(tmp_path / "a.csv", ["a"]):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_part_that_has_lost_rows_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.csv", [4], stop=True)
    os.truncate(tmp_path / "out.csv.part", 3)
    with pytest.raises(UsageError, match="has lost rows"):
        write(tmp_path / "out.csv", [], resume=True)


def test_a_link_at_the_name_of_the_part_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out.csv.part").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="cannot be written"):
        write(tmp_path / "out.csv", [])
    assert (tmp_path / "precious").read_text() == "precious"
