"""Token shards and blocks: nothing lost, nothing twice, the same after every interruption."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.token_store import compute_lengths
from finetune.pretraining import token_shards as shards_module
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.corpus import Document
from finetune.pretraining.token_shards import (
    MANIFEST,
    ShardManifest,
    TokenShards,
    open_shards,
    read_manifest,
    write_shards,
)
from finetune.storage.files import write_atomically
from task_formats import UsageError

END = 99
START = ShardManifest("key", 300, END)
DOCUMENTS = st.lists(st.lists(st.text("ab ", max_size=9), max_size=5), min_size=1, max_size=6)


class Killed(Exception):
    """Stands for a process that ends at once."""


def spell(texts):
    """One token a character; none of them is END."""
    return [[ord(letter) % 90 for letter in text] for text in texts]


def stream(documents) -> Iterator[Document]:
    return (Document(str(n), iter(pieces)) for n, pieces in enumerate(documents))


def laid_out(documents) -> list[int]:
    """The stream of tokens, made plainly."""
    texts = ["".join(pieces) for pieces in documents]
    return [END] + [token for text in texts if text for token in [*spell([text])[0], END]]


def made(folder: Path, documents, size: int = 7) -> TokenShards:
    return write_shards(stream(documents), spell, folder, START, size)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=30)
@given(DOCUMENTS.filter(lambda ds: any(map("".join, ds))), st.integers(1, 20), st.integers(2, 9))
def test_shards_and_blocks_hold_every_token_once(tmp_path_factory, documents, size, context):
    folder = tmp_path_factory.mktemp("shards")
    made(folder, documents, size)
    shards = open_shards(folder)
    tokens = laid_out(documents)
    assert shards.read(0, len(tokens)).tolist() == tokens
    assert shards.manifest.text_bytes == sum(len("".join(pieces)) for pieces in documents)
    assert shards.documents == sum(bool("".join(pieces)) for pieces in documents)
    for mixed in (False, True):
        blocks = TokenBlocks(shards, context, "train", mixed)
        assert [token for block in blocks for token in block.prefix[1:].tolist()] == tokens[1:]
        assert all(2 <= block.tokens <= context for block in blocks)
        assert all(
            np.array_equal(a, b)
            for a, b in zip(blocks.compute_lengths(), compute_lengths(list(blocks)), strict=True)
        )
        assert blocks.targets == len(tokens) - 1
        inner = [END in block.prefix[1:-1] for block in blocks]
        assert mixed or not any(inner), "a block crosses a document"


def test_long_documents_are_cut_evenly_and_stay_contiguous(tmp_path):
    blocks = TokenBlocks(made(tmp_path, [["ab " * 100], ["b"]]), 8, "train")
    lengths = [block.tokens for block in blocks]
    assert sum(lengths[:-1]) == 301 + len(lengths[:-1])
    assert max(lengths[:-1]) - min(lengths[:-1]) <= 1
    assert len(lengths) == -(-301 // 7) + 1
    assert [b.prefix[-1] for b in blocks[:-2]] == [b.prefix[0] for b in blocks[1:-1]]
    assert blocks[-1].id == f"train/{len(blocks) - 1}"
    with pytest.raises(IndexError):
        blocks[len(blocks)]


@pytest.mark.parametrize("writes", range(15))
def test_an_interrupted_writing_goes_on_and_ends_the_same(tmp_path, monkeypatch, writes):
    documents = [["aaaa", "bb"], ["a b a b a"], [], ["b", "bbb", "aaa"], ["ab" * 9], ["b"]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert len(made(whole, documents, 5).manifest.shards) == 5
    left = iter(range(writes))

    def write_or_die(path, content):
        if next(left, None) is None:
            raise Killed
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_atomically", write_or_die)
        with pytest.raises(Killed):
            made(broken, documents, 5)
    finished = read_manifest(broken).shards if writes >= 3 else ()
    assert len(finished) == writes // 3
    asked: list[str] = []

    def spell_and_note(texts):
        asked.extend(texts)
        return spell(texts)

    write_shards(stream(documents), spell_and_note, broken, START, 5)
    assert contents(broken) == contents(whole)
    # Nothing that is already there is made again; and at the end, nothing at all is.
    assert ["aaaa" in asked, "a b a b a" in asked] == [writes < 3, writes < 6]
    asked.clear()
    write_shards(stream(documents), spell_and_note, broken, START, 5)
    assert asked == []


def test_damage_is_noticed_and_written_anew(tmp_path):
    documents = [["aaaa", "bb"], ["a b a b a"]]
    made(tmp_path, documents, 5)
    good = contents(tmp_path)
    for name in sorted(good):
        for bad in (b"", good[name][:-1], good[name][:-1] + bytes([good[name][-1] ^ 1])):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(UsageError):
                open_shards(tmp_path)
            made(tmp_path, documents, 5)
            assert contents(tmp_path) == good
        (tmp_path / name).unlink()
        with pytest.raises(UsageError):
            open_shards(tmp_path)
        made(tmp_path, documents, 5)


def test_another_key_vocabulary_or_end_starts_anew(tmp_path):
    made(tmp_path, [["ab"]])
    for start in (replace(START, key="b"), replace(START, vocabulary=2**17), replace(START, end=4)):
        shards = write_shards(stream([["ab"]]), spell, tmp_path, start)
        assert shards.read(0, 4).tolist() == [start.end, *spell(["ab"])[0], start.end]
        assert shards.read(0, 4).dtype == (np.uint32 if start.vocabulary > 2**16 else np.uint16)


def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "shards"
    made(folder, [["ab"]])
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["shards"][0]["tokens"]["name"] = "../tokens-00000.npy"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="no name inside"):
        open_shards(folder)


def test_a_corpus_without_text_and_a_context_of_one_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no text"):
        made(tmp_path, [[], [""]])
    with pytest.raises(UsageError, match="context of 1"):
        TokenBlocks(made(tmp_path, [["ab"]]), 1, "train")
