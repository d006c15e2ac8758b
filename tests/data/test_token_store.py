"""The store of encoded rows equals the encoder's own output; its cache is right or made anew."""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import BadRow, ReadReport, RowLocation, TokenStore, encode_examples
from finetune.data import encoding_cache as module
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


def encoder(format: str, max_tokens: int = 12) -> ViewEncoder:
    return ViewEncoder(named_format(format), tokenize, SPECIALS, max_tokens)


def plain(item: Encoded) -> Encoded:
    """The same with lists for arrays, and types that json tells apart."""
    endings = tuple(list(map(int, ending)) for ending in item.endings)
    return Encoded(item.id, list(map(int, item.prefix)), endings, item.label, item.truncated_tokens)


text = st.text(max_size=8).filter(bool)
label = st.none() | st.integers(0, 3)
score = st.none() | st.floats(-5, 5)


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
    lambda kind: st.tuples(st.just(kind), examples(kind, label) | examples(kind, score))
)


@settings(max_examples=50)
@given(given_examples)
def test_a_store_equals_the_encoder(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, list[Example]]
) -> None:
    kind, rows = drawn
    folder = tmp_path_factory.mktemp("cache")
    expected = [plain(encoder(kind).encode([row])[0]) for row in rows]
    for cache in (None, folder, folder):
        store = encode_examples(iter(rows), encoder(kind), cache, "key")
        assert [plain(item) for item in store] == expected
        assert [type(item.label) for item in store] == label_types(rows)
        check_columns(store, expected)
    shutil.rmtree(folder)


def label_types(rows: Sequence[Example]) -> list[type]:
    """Whole numbers stay whole unless there is a score among them."""
    scores = any(isinstance(row.label, float) for row in rows)
    return [type(None) if row.label is None else float if scores else int for row in rows]


def check_columns(store: TokenStore, expected: Sequence[Encoded]) -> None:
    assert len(store) == len(expected)
    assert store.lengths.tolist() == [item.tokens for item in expected]
    assert store.views.tolist() == [len(item.endings) for item in expected]
    longest = [len(item.prefix) + max(map(len, item.endings)) for item in expected]
    assert store.longest.tolist() == longest
    assert store.cuts.tolist() == [item.truncated_tokens for item in expected]
    assert store.cut == sum(item.truncated_tokens for item in expected)
    labels = [np.nan if item.label is None else item.label for item in expected]
    np.testing.assert_array_equal(store.labels, labels)


def test_it_is_a_sequence() -> None:
    rows = [Example(f"train/{k}", {"text": "x" * (k + 1)}, label=k % 2) for k in range(2500)]
    store = encode_examples(rows, encoder("classification"), None, "")
    assert len(store) == 2500
    assert store[-1].id == "train/2499"
    assert [item.id for item in store[2:9:3]] == ["train/2", "train/5", "train/8"]
    assert [item.id for item in store] == [row.id for row in rows]
    assert list(store[7].prefix) == [SPECIALS.start, *map(ord, "x" * 8)]
    for index in (2500, -2501):
        with pytest.raises(IndexError):
            store[index]


def test_token_arrays_are_views_and_cannot_be_written(tmp_path: Path) -> None:
    rows = [Example("a", {"text": "abc"})]
    for cache in (None, tmp_path):
        item = encode_examples(rows, encoder("classification"), cache, "")[0]
        assert isinstance(item.prefix, np.ndarray)
        assert item.prefix.dtype == np.uint32
    with pytest.raises(ValueError, match="read-only"):
        item.prefix[0] = 1


def untouchable() -> Iterator[Example]:
    raise AssertionError("read although it was prepared")
    yield


def test_the_second_time_nothing_is_read(tmp_path: Path) -> None:
    rows = [Example(f"train/{k}", {"text": "abc"}, label=1) for k in range(3)]
    skipped = [
        BadRow(RowLocation("f.csv", 3), "train/1", "torn"),
        BadRow(RowLocation("f", 9, "row"), "x", "y"),
    ]
    first = ReadReport(skipped, unlabelled=4, rows=9)
    encode_examples(rows, encoder("classification"), tmp_path, "key", first)
    again = ReadReport()
    store = encode_examples(untouchable(), encoder("classification"), tmp_path, "key", again)
    assert [item.id for item in store] == ["train/0", "train/1", "train/2"]
    assert again == first
    with pytest.raises(AssertionError, match="read although"):
        encode_examples(untouchable(), encoder("classification"), tmp_path, "other")
    assert len(list(tmp_path.iterdir())) == 1


def damage(entry: Path, kind: int, seed: int) -> None:
    """One of the things that happen to files."""
    draw = random.Random(seed)
    path = draw.choice(sorted(path for path in entry.iterdir() if path.stat().st_size))
    raw = bytearray(path.read_bytes())
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(raw[: draw.randrange(len(raw))])
    elif kind == 2:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
    elif kind == 3:
        path.write_bytes(raw + b"\0")
    else:
        other = draw.choice(sorted(entry.iterdir()))
        path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_entry_is_never_used(tmp_path: Path, seed: int) -> None:
    rows = [Example(f"train/{k}", {"text": f"text {k}"}, label=k % 2) for k in range(20)]
    expected = [
        plain(item) for item in encode_examples(rows, encoder("classification"), tmp_path, "key")
    ]
    (entry,) = tmp_path.iterdir()
    damage(entry, seed % 5, seed)
    store = encode_examples(rows, encoder("classification"), tmp_path, "key")
    assert [plain(item) for item in store] == expected
    (entry,) = tmp_path.iterdir()
    store = encode_examples(untouchable(), encoder("classification"), tmp_path, "key")
    assert [plain(item) for item in store] == expected


def test_a_failure_leaves_no_entry(tmp_path: Path) -> None:
    def failing() -> Iterator[Example]:
        yield Example("a", {"text": "abc"})
        raise UsageError("a bad row")

    with pytest.raises(UsageError, match="a bad row"):
        encode_examples(failing(), encoder("classification"), tmp_path, "key")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once(tmp_path: Path) -> None:
    rows = [Example("a", {"text": "abc"})]

    def meanwhile() -> Iterator[Example]:
        encode_examples(rows, encoder("classification"), tmp_path, "key")
        yield from rows

    store = encode_examples(meanwhile(), encoder("classification"), tmp_path, "key")
    assert [item.id for item in store] == ["a"]
    assert len(list(tmp_path.iterdir())) == 1


def test_leavings_of_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Example("a", {"text": "abc"})]
    encode_examples(rows, encoder("classification"), tmp_path, "key")
    (entry,) = tmp_path.iterdir()
    partial = entry.with_name(f"{entry.name}.partial-1-2")
    shutil.move(entry, partial)
    encode_examples(rows, encoder("classification"), tmp_path, "key")
    assert sorted(tmp_path.iterdir()) == [entry, partial]
    shutil.rmtree(entry)
    monkeypatch.setattr(module, "_ABANDONED", -1)
    encode_examples(rows, encoder("classification"), tmp_path, "key")
    assert list(tmp_path.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match=r"cannot write prepared data.*\n.*GPTFT_CACHE"):
        encode_examples(
            [Example("a", {"text": "abc"})], encoder("classification"), blocked / "sub", "key"
        )


def test_nothing_but_numbers_and_json_is_kept(tmp_path: Path) -> None:
    encode_examples(
        [Example("a", {"text": "abc"}, label=1)], encoder("classification"), tmp_path, "key"
    )
    (entry,) = tmp_path.iterdir()
    facts: dict[str, Any] = json.loads((entry / "manifest.json").read_text())
    assert set(facts) == {"version", "whole", "files", "report"}
    assert {path.name for path in entry.iterdir()} == {"manifest.json", *facts["files"]}
    tokens = [SPECIALS.start, *map(ord, "abc"), SPECIALS.extract]
    assert (entry / "tokens").read_bytes() == np.array(tokens, "<u4").tobytes()
