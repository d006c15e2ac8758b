"""Texts that are too long, read in windows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_formats import FORMATS, Example, ViewEncoder, Windows
from tests.task_formats.test_encoding import SPECIALS, ids, segments, tokenize, views

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
TEXT = st.integers(1, len(LETTERS)).map(lambda length: LETTERS[:length])


def encode(kind, example, most, windows):
    return ViewEncoder(FORMATS[kind], tokenize, SPECIALS, most, windows).encode([example])[0]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 60), st.integers(1, 20))
def test_windows_reach_every_token_and_none_is_superfluous(length, size, stride, most):
    starts = Windows(stride, most=most).starts(length, size)
    covered = {n for start in starts for n in range(start, min(start + size, length))}
    assert covered == set(range(max(covered) + 1))
    assert len(starts) <= most
    if len(starts) < most:
        assert covered == set(range(length))
    assert all(start + size < length for start in starts[:-1])


@given(TEXT, st.integers(6, 40), st.integers(1, 30), st.integers(1, 5))
def test_a_text_is_read_in_overlapping_parts(text, most, stride, limit):
    example = Example("x", {"text": text}, (), 1)
    encoded = encode("classification", example, most, Windows(stride, most=limit))
    parts = [segments(view)[0] for view in views(encoded)]
    assert len(parts) == encoded.windows
    step = min(stride, most - 2)
    for n, part in enumerate(parts):
        assert part == ids(text)[n * step : n * step + most - 2]
    read = {token for part in parts for token in part}  # Every letter occurs once.
    assert encoded.truncated_tokens == len(text) - len(read)
    if len(text) <= most - 2:
        assert encoded == encode("classification", example, most, None)


def test_of_two_texts_the_longer_one_is_read_in_windows():
    fields = {"premise": LETTERS[:40], "hypothesis": "xyz"}
    encoded = encode("entailment", Example("x", fields), 20, Windows(8))
    pairs = [segments(view) for view in views(encoded)]
    assert [second for _, second in pairs] == [ids("xyz")] * encoded.windows
    starts = [first[0] for first, _ in pairs]
    assert starts == [ids(LETTERS)[8 * n] for n in range(encoded.windows)]
    assert encoded.truncated_tokens == 0
    similarity = {"first": "xyz", "second": LETTERS[:40]}
    encoded = encode("similarity", Example("x", similarity), 20, Windows(8))
    pairs = [segments(view) for view in views(encoded)]
    assert len(pairs) == 2 * encoded.windows
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        assert one == other[::-1]


def test_of_multiple_choice_the_context_is_read_in_windows():
    example = Example("x", {"context": LETTERS[:40]}, ("x", "yyyyyyyy", "zz"), 1)
    encoded = encode("multiple_choice", example, 20, Windows(8))
    pairs = [segments(view) for view in views(encoded)]
    assert encoded.windows > 1
    assert [second for _, second in pairs] == [
        ids("x"),
        ids("yyyyyyyy"),
        ids("zz"),
    ] * encoded.windows
    for n in range(encoded.windows):
        contexts = [first for first, _ in pairs[3 * n : 3 * n + 3]]
        assert contexts[0] == contexts[1] == contexts[2]
    # A choice that is too long is truncated: it is not in all views.
    example = Example("x", {"context": "ab"}, ("x", LETTERS), 0)
    assert encode("multiple_choice", example, 20, Windows(8)).windows == 1


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_short_texts_are_read_as_without_windows(kind):
    choices = ("up", "down") if FORMATS[kind].is_multiple_choice else ()
    example = Example("x", dict.fromkeys(FORMATS[kind].fields, "word"), choices, 0)
    assert encode(kind, example, 30, Windows(4)) == encode(kind, example, 30, None)
