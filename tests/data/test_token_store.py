"""A token store holds what the encoder returns; its cache is exact, or encoded again."""

import gc
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import BadRow, ReadReport, RowLocation, TokenStore, encode_examples, token_store
from finetune.data.token_store import compute_lengths, load_or_encode
from finetune.storage.files import cache_folder
from task_formats import (
    Encoded,
    Example,
    Label,
    SpecialTokens,
    UsageError,
    ViewEncoder,
    named_format,
)

SPECIALS = SpecialTokens(2**32 - 3, 2**32 - 2, 2**32 - 1)


def tokenize(texts: list[str]) -> list[list[int]]:
    return [[ord(character) for character in text] for text in texts]


def encoder(format: str = "classification") -> ViewEncoder:
    return ViewEncoder(named_format(format), tokenize, SPECIALS, 12)


def cached(examples, folder: Path | None, key: str = "key", report: ReadReport | None = None):
    return load_and_report(examples, folder, key, report)[0]


def load_and_report(examples, folder, key: str = "key", report: ReadReport | None = None):
    return load_or_encode(lambda: (examples, report or ReadReport()), encoder(), folder, key)


def plain(item: Encoded) -> Encoded:
    """The same with lists in the place of arrays."""
    endings = tuple(list(map(int, ending)) for ending in item.endings)
    prefix = list(map(int, item.prefix))
    return Encoded(item.id, prefix, endings, item.label, item.truncated_tokens)


def labelled(count: int) -> list[Example]:
    return [Example(f"train/{n}", {"text": f"text {n}"}, label=n % 2) for n in range(count)]


text = st.text(max_size=8).filter(bool)
label = st.none() | st.integers(0, 3)
score = st.none() | st.floats(-5, 5)
several = st.none() | st.tuples(*[st.sampled_from([0.0, 1.0])] * 3)


@st.composite
def examples(draw: st.DrawFn, format: str, labels: st.SearchStrategy[Label]) -> list[Example]:
    fields = st.fixed_dictionaries(dict.fromkeys(named_format(format).fields, text))
    choices = st.lists(text, min_size=2, max_size=4) if format == "multiple_choice" else st.just([])
    rows = draw(st.lists(st.tuples(text, fields, choices, labels), max_size=9))
    return [
        Example(f"é/{k}{name}", row, tuple(c), lab) for k, (name, row, c, lab) in enumerate(rows)
    ]


formats = st.sampled_from(["classification", "entailment", "similarity", "multiple_choice"])
given_examples = formats.flatmap(
    lambda kind: st.tuples(
        st.just(kind), examples(kind, label) | examples(kind, score) | examples(kind, several)
    )
)


@settings(max_examples=50)
@given(given_examples)
def test_a_store_equals_the_encoder(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, list[Example]]
) -> None:
    kind, rows = drawn
    folder = tmp_path_factory.mktemp("cache")
    expected = [plain(encoder(kind).encode([row])[0]) for row in rows]
    stores = [encode_examples(iter(rows), encoder(kind))] + [
        load_or_encode(lambda: (iter(rows), ReadReport()), encoder(kind), folder, "key")[0]
        for _ in range(2)
    ]
    for store in stores:
        assert [plain(item) for item in store] == expected
        assert [type(item.label) for item in store] == label_types(rows)
        missing = (np.nan,) * 3 if any(isinstance(row.label, tuple) for row in rows) else np.nan
        labels = [missing if item.label is None else item.label for item in expected]
        np.testing.assert_array_equal(store.labels, labels)
        for known, counted in zip(store.compute_lengths(), compute_lengths(expected), strict=True):
            assert known.tolist() == counted.tolist()
    shutil.rmtree(folder)


def label_types(rows: Sequence[Example]) -> list[type]:
    """Labels are integers unless there is a score among them, or there are several in a row."""
    scores = any(isinstance(row.label, float) for row in rows)
    known = tuple if any(isinstance(row.label, tuple) for row in rows) else float if scores else int
    return [type(None) if row.label is None else known for row in rows]


def test_rows_before_the_first_label_are_as_wide_as_the_others(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(token_store, "_BATCH", 2)
    labels = [None, None, None, (1.0, 0.0, 1.0), None, (0.0, 0.0, 0.0), None]
    rows = [Example(f"x/{n}", {"text": "a"}, (), label) for n, label in enumerate(labels)]
    for store in (encode_examples(rows, encoder()), cached(rows, tmp_path), cached(rows, tmp_path)):
        assert [item.label for item in store] == labels
        assert store.labels.shape == (7, 3)
        assert store.select([3, 0]).labels.shape == (2, 3)
        assert [item.label for item in store.select([0, 1])] == [None, None]


def test_few_long_texts_are_tokenized_at_once() -> None:
    """Tokenizing needs many times the memory of the texts."""
    sizes = []

    def measure(texts: list[str]) -> list[list[int]]:
        sizes.append(sum(map(len, texts)))
        return [[1] for _ in texts]

    rows = [Example(f"x/{n}", {"text": f"{n}" + "x" * 2**20}) for n in range(12)]
    store = encode_examples(rows, ViewEncoder(named_format("classification"), measure, SPECIALS, 9))
    assert len(store) == 12
    assert max(sizes) <= 5 * 2**20 + 100


def test_it_is_a_sequence(monkeypatch) -> None:
    monkeypatch.setattr(token_store, "_BATCH", 400)
    rows = labelled(2500)
    store = encode_examples(rows, encoder())
    assert len(store) == 2500
    assert store[-1].id == "train/2499"
    assert [item.id for item in store[2:9:3]] == ["train/2", "train/5", "train/8"]
    assert [item.id for item in store] == [row.id for row in rows]
    for index in (2500, -2501):
        with pytest.raises(IndexError):
            store[index]


@given(given_examples, st.lists(st.integers(0, 8)))
def test_selected_examples_are_those_of_the_store(
    drawn: tuple[str, list[Example]], indices: list[int]
) -> None:
    store = encode_examples(drawn[1], encoder(drawn[0]))
    indices = [n for n in indices if n < len(store)]
    selected = store.select(indices)
    assert [plain(item) for item in selected] == [plain(store[n]) for n in indices]
    assert isinstance(selected, TokenStore)


def test_token_arrays_are_views_and_read_only(tmp_path: Path) -> None:
    rows = [Example("a", {"text": "abc"})]
    for store in (encode_examples(rows, encoder()), cached(rows, tmp_path)):
        assert isinstance(store[0].prefix, np.ndarray)
        assert store[0].prefix.base is not None
        assert store[0].prefix.dtype == np.uint32
    with pytest.raises(ValueError, match="read-only"):
        store[0].prefix[0] = 1  # type: ignore[index]


def unreadable() -> Iterator[Example]:
    raise AssertionError("the examples were read")
    yield


def test_the_second_time_nothing_is_read(tmp_path: Path) -> None:
    skipped = [
        BadRow(RowLocation("f.csv", 3), "train/1", "torn"),
        BadRow(RowLocation("f", 9, "row"), "x", "y"),
    ]
    first = ReadReport(skipped, more_skipped=7, unlabelled=4, rows=19)
    cached(labelled(3), tmp_path, report=first)
    store, second = load_and_report(unreadable(), tmp_path)
    assert [item.id for item in store] == ["train/0", "train/1", "train/2"]
    assert second == first
    with pytest.raises(AssertionError, match="the examples were read"):
        cached(unreadable(), tmp_path, "other key")
    assert len(list(tmp_path.iterdir())) == 1


def damage(entry: Path, kind: str, draw: random.Random) -> None:
    path = draw.choice(sorted(path for path in entry.iterdir() if path.stat().st_size))
    raw = bytearray(path.read_bytes())
    if kind == "removed":
        path.unlink()
        return
    if kind == "cut":
        raw = raw[: draw.randrange(len(raw))]
    elif kind == "flipped bit":
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    else:
        raw += b"\0"
    path.write_bytes(raw)


@pytest.mark.parametrize("kind", ["removed", "cut", "flipped bit", "longer"])
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_entry_is_replaced(tmp_path: Path, kind: str, seed: int) -> None:
    rows = labelled(20)
    expected = [plain(item) for item in cached(rows, tmp_path)]
    (entry,) = tmp_path.iterdir()
    damage(entry, kind, random.Random(seed))
    assert [plain(item) for item in cached(rows, tmp_path)] == expected
    assert list(tmp_path.iterdir()) == [entry]
    assert [plain(item) for item in cached(unreadable(), tmp_path)] == expected


def test_a_failure_leaves_no_entry_and_a_whole_heap(tmp_path: Path) -> None:
    def failing() -> Iterator[Example]:
        assert gc.get_freeze_count() > 0
        yield Example("a", {"text": "abc"})
        raise UsageError("a bad row")

    with pytest.raises(UsageError, match="a bad row"):
        cached(failing(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert gc.get_freeze_count() == 0


def test_a_heap_that_the_program_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        encode_examples(labelled(3), encoder())
        assert gc.get_freeze_count() >= before > 0
    finally:
        gc.unfreeze()


def test_two_processes_may_encode_the_same_examples(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[Example]:
        cached(labelled(1), tmp_path)
        yield from labelled(1)

    assert [item.id for item in cached(meanwhile(), tmp_path)] == ["train/0"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_other_processes_delete_is_tried_again(tmp_path: Path, monkeypatch) -> None:
    """One takes an entry for damaged that was not complete, and deletes the new one."""
    load, calls = token_store._load, []

    def load_after_a_deletion(folder: Path):
        calls.append(folder)
        if len(calls) == 2:
            shutil.rmtree(folder)
        return load(folder)

    monkeypatch.setattr(token_store, "_load", load_after_a_deletion)
    store, report = load_and_report(labelled(3), tmp_path)
    assert [item.id for item in store] == ["train/0", "train/1", "train/2"]
    assert (len(calls), report.cache_error) == (3, "")


@pytest.mark.parametrize("place", ["a file", "a folder without permission", "no home"])
def test_without_a_cache_the_examples_are_encoded_into_memory(
    tmp_path: Path, monkeypatch, place: str
) -> None:
    folder: Path | None = tmp_path / "cache"
    if place == "a file":
        folder.write_text("")
    elif place == "no home":
        folder = None
    else:

        def refuse(path: Path, *arguments: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", refuse)
    store, report = load_and_report(labelled(3), folder)
    assert [plain(item) for item in store] == encoder().encode(labelled(3))
    [notice] = report.describe("rows")
    assert notice.startswith("the encoded rows are not cached: ")
    assert "GPTFT_CACHE" in notice


def test_a_user_without_a_home_has_no_cache(monkeypatch) -> None:
    for name in ("GPTFT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(UsageError, match="no home folder"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/gptft")
