"""Encoded corpora and blocks contain every token once; damage and interruptions are noticed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.token_store import compute_lengths
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.encoded_corpus import EncodedCorpus, encode_corpus, open_encoded_corpus
from finetune.progress import displayed_by
from task_formats import UsageError

END = 99
DOCUMENTS = st.lists(st.lists(st.text("ab ", max_size=9), max_size=5), min_size=1, max_size=6)


def tokenize(texts):
    """One token for each character; none of them is END."""
    return [[ord(letter) % 90 for letter in text] for text in texts]


def expected_tokens(texts) -> list[int]:
    joined = ["".join(pieces) for pieces in texts]
    return [END] + [token for text in joined if text for token in [*tokenize([text])[0], END]]


def write(folder: Path, texts, tokenize=tokenize, **options) -> EncodedCorpus:
    options = {"key": "key", "vocabulary_size": 300, "end_id": END, **options}
    return encode_corpus(texts, tokenize, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=30)
@given(DOCUMENTS.filter(lambda ds: any(map("".join, ds))), st.integers(2, 9))
def test_corpus_and_blocks_contain_every_token_once(tmp_path_factory, texts, context):
    folder = tmp_path_factory.mktemp("corpus")
    write(folder, texts)
    corpus = open_encoded_corpus(folder)
    tokens = expected_tokens(texts)
    assert corpus.tokens.tolist() == tokens
    assert corpus.starts.tolist() == [n for n, token in enumerate(tokens) if token == END]
    assert corpus.text_bytes == sum(len("".join(pieces)) for pieces in texts)
    for mixed in (False, True):
        blocks = TokenBlocks(corpus, context, "train", mixed)
        assert [token for block in blocks for token in block.prefix[1:].tolist()] == tokens[1:]
        assert all(2 <= block.tokens <= context for block in blocks)
        lengths = zip(blocks.compute_lengths(), compute_lengths(blocks), strict=True)
        assert all(np.array_equal(one, other) for one, other in lengths)
        assert blocks.targets == len(tokens) - 1
        inner = [END in block.prefix[1:-1] for block in blocks]
        assert mixed or not any(inner), "a block crosses a document boundary"


def test_long_documents_are_cut_evenly_and_blocks_overlap_by_a_token(tmp_path):
    *blocks, last = TokenBlocks(write(tmp_path, [["ab " * 100], ["b"]]), 8, "train")
    lengths = [block.tokens for block in blocks]
    assert sum(lengths) == 301 + len(blocks)
    assert max(lengths) - min(lengths) <= 1
    assert len(blocks) == -(-301 // 7)
    assert [b.prefix[-1] for b in blocks[:-1]] == [b.prefix[0] for b in blocks[1:]]
    assert last.id == f"train/{len(blocks)}"


def test_the_bytes_of_the_text_are_counted_while_they_are_encoded(tmp_path):
    seen = []
    with displayed_by(lambda progress: seen.append((progress.done, progress.total))):
        write(tmp_path, [["aé", "b"], ["ab"]], total_bytes=6)
    assert seen == [(0, 6), (3, 6), (4, 6), (6, 6), (6, 6)]


@pytest.mark.parametrize("calls", range(3))
def test_interrupted_writing_starts_again_and_leaves_no_files(tmp_path, calls):
    texts = [["ab"]] * 150
    remaining = iter(range(calls))

    def tokenize_or_stop(texts):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return tokenize(texts)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, texts, tokenize_or_stop)
    assert contents(tmp_path) == {}
    assert write(tmp_path, texts).tokens.tolist() == expected_tokens(texts)


def test_damaged_files_are_detected_and_written_again(tmp_path):
    texts = [["aaaa", "bb"], ["a b a b a"]]
    write(tmp_path, texts)
    good = contents(tmp_path)
    for name, content in sorted(good.items()):
        for bad in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1]), None):
            (tmp_path / name).unlink()
            if bad is not None:
                (tmp_path / name).write_bytes(bad)
            with pytest.raises(UsageError):
                open_encoded_corpus(tmp_path)
            write(tmp_path, texts)
            assert contents(tmp_path) == good
    # An undamaged corpus is not written again.
    write(tmp_path, texts, tokenize=None)


def test_another_key_replaces_the_corpus(tmp_path):
    write(tmp_path, [["ab"]])
    corpus = write(tmp_path, [["b"]], key="b", vocabulary_size=2**17, end_id=70_000)
    assert corpus.tokens.tolist() == [70_000, *tokenize(["b"])[0], 70_000]


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the corpus has no text"):
        write(tmp_path, [[], [""]])
