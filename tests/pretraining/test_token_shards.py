"""Token shards and blocks: every token once, and the same files after every interruption."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.token_store import compute_lengths
from finetune.pretraining import token_shards
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.corpus import Document
from finetune.pretraining.token_shards import (
    ShardManifest,
    TokenShards,
    open_shards,
    write_shards,
)
from finetune.storage import manifest as storage_manifest
from finetune.storage.files import write_atomically
from task_formats import UsageError

END = 99
START = ShardManifest("key", 300, END)
DOCUMENTS = st.lists(st.lists(st.text("ab ", max_size=9), max_size=5), min_size=1, max_size=6)


def tokenize(texts):
    """One token for each character; none of them is END."""
    return [[ord(letter) % 90 for letter in text] for text in texts]


def make_documents(texts) -> Iterator[Document]:
    return (Document(str(n), iter(pieces)) for n, pieces in enumerate(texts))


def expected_tokens(texts) -> list[int]:
    joined = ["".join(pieces) for pieces in texts]
    return [END] + [token for text in joined if text for token in [*tokenize([text])[0], END]]


def write(folder: Path, texts, shard_tokens: int = 7, start: ShardManifest = START) -> TokenShards:
    return write_shards(make_documents(texts), tokenize, folder, start, shard_tokens)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=30)
@given(DOCUMENTS.filter(lambda ds: any(map("".join, ds))), st.integers(1, 20), st.integers(2, 9))
def test_shards_and_blocks_contain_every_token_once(tmp_path_factory, texts, size, context):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, texts, size)
    shards = open_shards(folder)
    tokens = expected_tokens(texts)
    assert shards.read(0, len(tokens)).tolist() == tokens
    assert shards.manifest.text_bytes == sum(len("".join(pieces)) for pieces in texts)
    assert shards.documents == sum(bool("".join(pieces)) for pieces in texts)
    for mixed in (False, True):
        blocks = TokenBlocks(shards, context, "train", mixed)
        assert [token for block in blocks for token in block.prefix[1:].tolist()] == tokens[1:]
        assert all(2 <= block.tokens <= context for block in blocks)
        lengths = zip(blocks.compute_lengths(), compute_lengths(blocks), strict=True)
        assert all(np.array_equal(one, other) for one, other in lengths)
        assert blocks.targets == len(tokens) - 1
        inner = [END in block.prefix[1:-1] for block in blocks]
        assert mixed or not any(inner), "a block crosses a document boundary"


def test_long_documents_are_cut_evenly_and_blocks_overlap_by_a_token(tmp_path):
    blocks = TokenBlocks(write(tmp_path, [["ab " * 100], ["b"]]), 8, "train")
    lengths = [block.tokens for block in blocks]
    assert sum(lengths[:-1]) == 301 + len(lengths[:-1])
    assert max(lengths[:-1]) - min(lengths[:-1]) <= 1
    assert len(lengths) == -(-301 // 7) + 1
    assert [b.prefix[-1] for b in blocks[:-2]] == [b.prefix[0] for b in blocks[1:-1]]
    assert blocks[-1].id == f"train/{len(blocks) - 1}"
    with pytest.raises(IndexError):
        blocks[len(blocks)]


@pytest.mark.parametrize("writes", range(15))
def test_interrupted_writing_resumes_and_gives_the_same_files(tmp_path, monkeypatch, writes):
    """A shard is three writes: tokens, starts and the manifest."""
    texts = [["aaaa", "bb"], ["a b a b a"], [], ["b", "bbb", "aaa"], ["ab" * 9], ["b"]]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert len(write(whole, texts, 5).manifest.shard_tokens) == 5
    remaining = iter(range(writes))

    def write_or_stop(path, content):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(token_shards, "write_atomically", write_or_stop)
        patch.setattr(storage_manifest, "write_atomically", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            write(broken, texts, 5)
    finished = open_shards(broken).manifest.shard_tokens if writes >= 3 else ()
    assert len(finished) == writes // 3
    tokenized: list[str] = []

    def tokenize_and_record(texts):
        tokenized.extend(texts)
        return tokenize(texts)

    for expected in ([writes < 3, writes < 6], [False, False]):
        write_shards(make_documents(texts), tokenize_and_record, broken, START, 5)
        assert contents(broken) == contents(whole)
        assert ["aaaa" in tokenized, "a b a b a" in tokenized] == expected
        tokenized.clear()


def test_damaged_files_are_detected_and_written_again(tmp_path):
    texts = [["aaaa", "bb"], ["a b a b a"]]
    write(tmp_path, texts, 5)
    good = contents(tmp_path)
    for name, content in sorted(good.items()):
        for bad in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1]), None):
            (tmp_path / name).unlink()
            if bad is not None:
                (tmp_path / name).write_bytes(bad)
            with pytest.raises(UsageError):
                open_shards(tmp_path)
            write(tmp_path, texts, 5)
            assert contents(tmp_path) == good


@pytest.mark.parametrize(
    "start",
    [replace(START, key="b"), replace(START, vocabulary_size=2**17), replace(START, end_id=4)],
)
def test_shards_with_another_key_vocabulary_or_end_are_replaced(tmp_path, start):
    write(tmp_path, [["ab"]])
    shards = write(tmp_path, [["ab"]], start=start)
    assert shards.read(0, 4).tolist() == [start.end_id, *tokenize(["ab"])[0], start.end_id]
    assert shards.read(0, 4).dtype == (np.uint32 if start.vocabulary_size > 2**16 else np.uint16)


def test_an_empty_corpus_and_a_context_of_one_token_are_refused(tmp_path):
    with pytest.raises(UsageError, match="the corpus has no text"):
        write(tmp_path, [[], [""]])
    with pytest.raises(UsageError, match="context of 1"):
        TokenBlocks(write(tmp_path, [["ab"]]), 1, "train")
