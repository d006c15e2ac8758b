"""Plain text: what is read, what is changed and what is refused."""

import gzip
import lzma
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from finetune.pretraining.corpus import (
    cut_pieces,
    detect_width,
    find_files,
    fingerprint,
    join_lines,
    make_pieces,
    open_corpus,
    read_text,
    unwrap_lines,
)
from finetune.pretraining.plan import CorpusConfig
from task_formats import UsageError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
LINES = st.text(st.sampled_from("ab  \n.,-"), max_size=300)
PAGE = """\
It was a cold and cheerless evening, and the wind that blew from the river
brought with it nothing but the smell of coal-
smoke. Nobody walked abroad.

    O wind, that blowest all the day,
    A sail is a blessing to them that stay,

"Quiet!" said he.
The master of the house looked up from the paper that he had been reading,
and shook his head.
He had been a soldier in his youth, and nothing that came to pass at night
could move him from his chair before the last column had been read.
"""
UNWRAPPED = """\
It was a cold and cheerless evening, and the wind that blew from the river brought with it \
nothing but the smell of coal-smoke. Nobody walked abroad.

    O wind, that blowest all the day,
    A sail is a blessing to them that stay,

"Quiet!" said he.
The master of the house looked up from the paper that he had been reading, and shook his head.
He had been a soldier in his youth, and nothing that came to pass at night could move him from \
his chair before the last column had been read.
"""


def read(path: Path, unwrap: bool = False) -> str:
    return "".join(make_pieces(read_text(path), unwrap))


def cut_blocks(text: str, cuts: list[int]) -> list[str]:
    bounds = sorted(min(cut, len(text)) for cut in cuts)
    return [text[a:b] for a, b in zip([0, *bounds], [*bounds, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".txt", bytes), (".TXT.GZ", gzip.compress), (".xz", lzma.compress)]
)
def test_only_byte_order_mark_and_line_ends_are_changed(tmp_path, suffix, compress):
    path = tmp_path / f"book{suffix}"
    path.write_bytes(compress("\ufeffOne\r\ntwo \rthree\n\n\ufefffour é".encode()))
    assert find_files([str(tmp_path)]) == [path]
    assert read(path) == "One\ntwo \nthree\n\n\ufefffour é"


@given(TEXTS)
def test_any_text_is_read_back(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert read(path) == plain


@given(st.text(), st.integers(1, 50), st.lists(st.integers(0, 60), max_size=5))
def test_pieces_join_to_the_text_wherever_blocks_end(text, size, cuts):
    blocks = cut_blocks(text, cuts)
    pieces = list(cut_pieces(blocks, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size + 1 for piece in pieces)
    assert pieces == list(cut_pieces([text], size))


@given(st.text(st.sampled_from("ab'Z9 \n\t.é中"), max_size=80), st.integers(20, 40))
def test_a_piece_ends_where_byte_level_bpe_splits_the_text_anyway(text, size):
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    blank_within_reach = all(
        any(text[i - 1 : i + 2].split() == [text[i - 1], text[i + 1]] for i in window)
        for end in range(size, len(text) - 1)
        if (window := range(max(end - size + 1, 1), end + 1))
    )
    words = [
        word for piece in cut_pieces([text], size) for word, _ in splitter.pre_tokenize_str(piece)
    ]
    if blank_within_reach:
        assert words == [word for word, _ in splitter.pre_tokenize_str(text)]


def test_wrapped_lines_are_joined_within_paragraphs_only():
    assert detect_width(PAGE * 4) == 74
    assert "".join(unwrap_lines([PAGE * 4])) == UNWRAPPED * 4


def test_text_without_wrapped_lines_is_unchanged():
    paragraphs = "".join(f"{'word ' * n}end.\n" for n in range(5, 90))
    code = "".join(f"{'    ' * (n % 4)}x{n} = {n}\n" for n in range(100)) + "y = 1  " + "#" * 60
    for text in (paragraphs, code, "", "One line."):
        assert detect_width(text) is None
        assert "".join(unwrap_lines([text])) == text


@given(LINES, st.lists(st.integers(0, 300), max_size=6), st.integers(3, 20))
def test_unwrapping_changes_only_line_breaks_wherever_blocks_end(text, cuts, width):
    blocks = cut_blocks(text, cuts)
    joined = "".join(join_lines(blocks, width))
    assert joined == "".join(join_lines([text], width))
    assert "".join(joined.split()) == "".join(text.split())
    assert joined.count("\n") <= text.count("\n")


def test_a_very_long_line_is_cut_into_pieces(tmp_path):
    path = tmp_path / "long.gz"
    path.write_bytes(gzip.compress(b"x" * 5_000_000))
    pieces = [len(piece) for piece in make_pieces(read_text(path), unwrap=True)]
    assert sum(pieces) == 5_000_000
    assert max(pieces) <= 2**16


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        (b"\xe9t\xe9", 1, 1),
        (b"ab\xc3", 1, 3),
        (b"a" * 2**21 + b"\xe9", 1, 2**21 + 1),
        (b"a\n" * 2**20 + b"bc\xe9", 2**20 + 1, 3),
    ],
)
def test_a_byte_that_is_not_utf8_is_named_with_line_and_position(tmp_path, content, line, byte):
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not UTF-8") as caught:
        list(read_text(path))
    assert caught.value.where == f"{path}, line {line}, byte {byte}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.gz", gzip.compress(b"word " * 1000, mtime=0)[:40]),
        ("cut.xz", lzma.compress(bytes(range(256)) * 100)[:100]),
        ("not.xz", b"plain"),
        ("flipped.gz", gzip.compress(b"word " * 1000, mtime=0)[:20] + b"\xff" * 20),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{name}: cannot be read"):
        list(read_text(path))


def test_files_folders_and_globs_give_each_file_once_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.xz", "sub/notes.md", "d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(*patterns: str) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in find_files(patterns)]

    folder = str(tmp_path)
    assert names(folder) == ["a.txt", "b.txt", "sub/c.xz"]
    assert names(f"{folder}/b.txt", f"{folder}/*.txt") == ["b.txt", "a.txt"]
    assert names(f"{folder}/**/*.md") == ["sub/notes.md"]
    with pytest.raises(UsageError, match=r"no text files under .*nowhere"):
        names(f"{folder}/nowhere/*.txt")


def test_the_fingerprint_depends_on_contents_and_order_but_not_on_names(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, text in zip(paths, ["one", "two", "one"], strict=True):
        path.write_text(text)
    a, b, c = paths
    assert fingerprint([a, b]) == fingerprint([c, b])
    assert len({fingerprint([a, b]), fingerprint([b, a]), fingerprint([a]), fingerprint([])}) == 4


@pytest.mark.parametrize("kind", ["xztar", "zip"])
def test_archives_are_refused(tmp_path, kind):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "book.txt").write_text("It rained.\n")
    path = Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "texts"))
    with pytest.raises(UsageError, match="is NUL, so this is not a text file") as caught:
        read(path)
    assert caught.value.where == str(path)
    assert "Unpack" in caught.value.cure


def test_compressed_rows_are_read_as_rows(tmp_path):
    content = b'{"text": "It rained."}\n{"text": "a\\r\\nb"}\n'
    for name, compress in (("A.JSONL.GZ", gzip.compress), ("a.jsonl.xz", lzma.compress)):
        (tmp_path / name).write_bytes(compress(content))
        corpus = open_corpus(CorpusConfig(train="x"), (str(tmp_path / name),))
        assert ["".join(document) for document in corpus.read()] == ["It rained.", "a\nb"]
