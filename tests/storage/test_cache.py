"""The cache: what is in it, its limit, and how it is cleared."""

import os

import pytest

from finetune.cli import main
from finetune.storage.cache import (
    clear,
    enforce_limit,
    enforce_limit_once,
    list_entries,
    mark_used,
)
from task_formats import UsageError


def add(cache, number: int, size: int = 1000, used: float = 0):
    """An entry of encoded rows with an empty manifest."""
    folder = cache / f"{number:032x}"
    folder.mkdir(parents=True)
    (folder / "tokens").write_bytes(bytes(size))
    (folder / "manifest.json").touch()
    os.utime(folder / "manifest.json", (used, used))
    return folder


def names(cache):
    return [int(path.name, 16) for path in sorted(cache.iterdir())]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path))
    monkeypatch.setenv("GPTFT_CACHE_LIMIT", str(3000 / 2**30))
    return tmp_path


def test_the_least_recently_used_entries_go_first(cache):
    first, *_ = [add(cache, number, used=number) for number in range(4)]
    mark_used(first)
    enforce_limit(cache, keep=add(cache, 9, used=0.5))
    assert names(cache) == [0, 3, 9]


def test_an_entry_in_use_stays_even_if_it_is_too_large(cache):
    add(cache, 1, used=5)
    enforce_limit(cache, keep=add(cache, 2, size=9000))
    assert names(cache) == [2]


def test_what_a_kill_left_goes_after_a_day(cache):
    for name, age in (("new", 0), ("old", 1)):
        folder = cache / f"{1:032x}.partial-{name}"
        folder.mkdir()
        if age:
            os.utime(folder, (0, 0))
    enforce_limit(cache, keep=cache / "none")
    assert [path.name[-3:] for path in cache.iterdir()] == ["new"]


def test_other_files_are_not_touched(cache):
    (cache / "notes").mkdir()
    (cache / "notes" / "mine.txt").write_text("mine")
    add(cache, 1)
    (cache / "bases" / "small-0123").mkdir(parents=True)
    assert [entry.kind for entry in clear(cache)] == ["encoded rows", "converted bases"]
    assert (cache / "notes" / "mine.txt").exists()
    assert list_entries(cache) == []


def test_a_limit_that_is_no_number_is_refused(cache, monkeypatch):
    monkeypatch.setenv("GPTFT_CACHE_LIMIT", "many")
    with pytest.raises(UsageError, match="GPTFT_CACHE_LIMIT: 'many' is not a number of GiB"):
        enforce_limit(cache, keep=cache / "none")


def test_the_command_shows_and_clears(cache, capsys):
    assert main(["cache"]) == 0
    assert "The cache is empty." in capsys.readouterr().out
    add(cache, 1, size=3 * 2**20)
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == str(cache)
    assert "encoded rows" in out
    assert "3 MiB" in out
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == "Deleted 1 entry, 3 MiB.\n"
    assert names(cache) == []


def test_a_process_enforces_the_limit_once(cache):
    for number in range(5):
        add(cache, number, used=number)
    enforce_limit_once(cache, keep=cache / "none")
    assert len(list_entries(cache)) == 3
    add(cache, 9, used=9)
    enforce_limit_once(cache, keep=cache / "none")
    assert len(list_entries(cache)) == 4
