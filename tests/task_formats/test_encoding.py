"""Token sequences: those of the paper, within the limit for all texts."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from task_formats import (
    FORMATS,
    Encoded,
    Example,
    Format,
    SpecialTokens,
    UsageError,
    ViewEncoder,
)

S, D, E = SPECIALS = SpecialTokens(0, 1, 2)
FIRST = 10

CUSTOM = {
    "one view of three texts": Format((("{first}", "{second}", "{first}"),)),
    "views of different texts": Format((("{first}",), ("{second}", "{text}"), ("{text}",))),
    "words around fields": Format((("{first} and {second}", "so: {text}"),)),
    "three texts a choice": Format((("{context}", "{first}", "{choice}"),)),
}
ALL = {**FORMATS, **CUSTOM}


def tokenize(texts: list[str]) -> list[list[int]]:
    """A token per character, never a special one; blanks vanish, so some texts have no token."""
    return [[FIRST + ord(letter) for letter in text if letter != " "] for text in texts]


def ids(text: str) -> list[int]:
    return tokenize([text])[0]


def encode(kind: Format, example: Example, max_tokens: int = 512) -> Encoded:
    return ViewEncoder(kind, tokenize, SPECIALS, max_tokens).encode([example])[0]


def views(encoded: Encoded) -> list[list[int]]:
    return [[*encoded.prefix, *ending] for ending in encoded.endings]


def segments(view: Sequence[int]) -> list[list[int]]:
    """The texts of a view, after checking that S, D and E stand where the paper puts them."""
    assert view[0] == S
    assert view[-1] == E
    assert view.count(S) == view.count(E) == 1
    parts: list[list[int]] = [[]]
    for token in view[1:-1]:
        if token == D:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


# -- the four kinds, token by token ----------------------------------------------------------------


def test_classification_is_start_text_extract() -> None:
    encoded = encode(FORMATS["classification"], Example("a/0", {"text": "hey"}, label=1))
    assert views(encoded) == [[S, *ids("hey"), E]]
    assert encoded == Encoded("a/0", [S, *ids("hey")], ([E],), 1, 0)


def test_entailment_is_start_premise_delimiter_hypothesis_extract() -> None:
    example = Example("a/1", {"premise": "it", "hypothesis": "is"}, label=0)
    assert views(encode(FORMATS["entailment"], example)) == [[S, *ids("it"), D, *ids("is"), E]]


def test_similarity_is_both_orders() -> None:
    encoded = encode(FORMATS["similarity"], Example("a/2", {"first": "ab", "second": "ac"}))
    assert views(encoded) == [
        [S, *ids("ab"), D, *ids("ac"), E],
        [S, *ids("ac"), D, *ids("ab"), E],
    ]
    assert encoded.prefix == [S, *ids("a")]


def test_multiple_choice_is_one_view_per_choice_after_a_shared_context() -> None:
    example = Example("a/3", {"context": "why"}, ("no", "nay", "so"), label=2)
    encoded = encode(FORMATS["multiple_choice"], example)
    assert encoded.prefix == [S, *ids("why"), D]
    assert encoded.endings == ([*ids("no"), E], [*ids("nay"), E], [*ids("so"), E])
    assert encoded.label == 2


@pytest.mark.parametrize(
    ("choices", "endings"),
    [(("same", "same"), ([E], [E])), (("ab", "abc"), ([E], [*ids("c"), E]))],
)
def test_every_view_keeps_its_extract_token(choices, endings) -> None:
    example = Example("a/5", {"context": "c"}, choices)
    assert encode(FORMATS["multiple_choice"], example).endings == endings


# -- whatever the texts and the limit --------------------------------------------------------------

TEXT = st.text("ab c", max_size=30)
FIELDS = ("text", "premise", "hypothesis", "first", "second", "context")


@st.composite
def examples(draw) -> Example:
    fields = {name: draw(TEXT) for name in FIELDS}
    return Example("a/0", fields, tuple(draw(st.lists(TEXT, min_size=1, max_size=5))))


def fewest(kind: Format) -> int:
    return max(map(len, kind.views)) + 2


@st.composite
def cases(draw):
    kind = ALL[draw(st.sampled_from(sorted(ALL)))]
    return kind, draw(examples()), fewest(kind) + draw(st.integers(0, 50))


@given(cases())
def test_every_view_fits_and_keeps_its_special_tokens(case) -> None:
    kind, example, limit = case
    encoded = encode(kind, example, limit)
    layout = kind.render(example)
    assert (
        len(encoded.endings)
        == len(layout)
        == (len(example.choices) if kind.is_multiple_choice else len(kind.views))
    )
    for view, texts in zip(views(encoded), layout, strict=True):
        assert len(view) <= limit
        found = segments(view)
        assert len(found) == len(texts)
        for part, pieces in zip(found, texts, strict=True):
            # Of every piece the head is kept, in order.
            rest = iter(ids("".join(pieces)))
            assert all(token in rest for token in part)
            if len(pieces) == 1:
                assert part == ids(pieces[0])[: len(part)]


@given(cases())
def test_a_text_is_truncated_equally_everywhere_and_the_count_is_reported(case) -> None:
    kind, example, limit = case
    encoded = encode(kind, example, limit)
    kept: dict[str, set[int]] = {}
    for view, texts in zip(views(encoded), kind.render(example), strict=True):
        for part, pieces in zip(segments(view), texts, strict=True):
            assume(len(pieces) == 1)
            kept.setdefault(pieces[0], set()).add(len(part))
    assert all(len(lengths) == 1 for lengths in kept.values())
    remaining = sum(min(lengths) for lengths in kept.values())
    assert remaining + encoded.truncated_tokens == sum(len(ids(text)) for text in kept)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(8, 60))
def test_fields_of_one_segment_are_truncated_separately(story, question, limit) -> None:
    kind = Format((("{story}-{question}", "{choice}"),))
    example = Example("a/0", {"story": "a" * story, "question": "b" * question}, ("c", "c c"))
    found = segments(views(encode(kind, example, limit))[0])[0]
    a, b = found.count(ids("a")[0]), found.count(ids("b")[0])
    # The longer gives way: a short question is whole however long the story.
    assert b == question or b + 1 >= a - 1
    assert a == story or a >= b
    assert (a, b) == (story, question) or len(views(encode(kind, example, limit))[0]) >= limit - 1


@given(cases())
def test_only_too_long_views_are_truncated_and_then_fill_the_limit(case) -> None:
    kind, example, limit = case
    encoded = encode(kind, example, limit)
    layout = kind.render(example)
    whole = [1 + sum(len(ids("".join(pieces))) + 1 for pieces in view) for view in layout]
    assert (encoded.truncated_tokens > 0) == (max(whole) > limit)
    if encoded.truncated_tokens:
        # A text that a view repeats can only be cut in steps of its count.
        texts = [[text for pieces in view for text in pieces] for view in layout]
        most = max(view.count(text) for view in texts for text in view)
        assert limit - most < max(map(len, views(encoded))) <= limit


@given(cases())
def test_prefix_and_endings_are_the_longest_split(case) -> None:
    kind, example, limit = case
    encoded = encode(kind, example, limit)
    assert all(len(ending) >= 1 and ending[-1] == E for ending in encoded.endings)
    assert len(encoded.prefix) >= 1
    if all(len(ending) > 1 for ending in encoded.endings):
        assert len({ending[0] for ending in encoded.endings}) > 1
    assert encoded.tokens == len(encoded.prefix) + sum(map(len, encoded.endings))


@given(TEXT, TEXT, st.integers(4, 60))
def test_mirrored_views_stay_mirrored(first: str, second: str, limit: int) -> None:
    there = encode(FORMATS["similarity"], Example("", {"first": first, "second": second}), limit)
    back = encode(FORMATS["similarity"], Example("", {"first": second, "second": first}), limit)
    ahead, behind = map(segments, views(there))
    assert ahead == behind[::-1]
    assert views(there) == views(back)[::-1]
    assert there.truncated_tokens == back.truncated_tokens


@given(st.lists(examples(), max_size=4), st.sampled_from(sorted(ALL)), st.integers(0, 40))
def test_encoding_many_examples_equals_encoding_each(
    many: list[Example], name: str, more: int
) -> None:
    kind = ALL[name]
    asked: list[str] = []

    def counting(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return tokenize(texts)

    limit = fewest(kind) + more
    together = ViewEncoder(kind, counting, SPECIALS, limit).encode(many)
    assert together == [encode(kind, example, limit) for example in many]
    assert len(asked) == len(set(asked)), "a text was tokenized twice"


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_limit_below_the_minimum_is_an_error(name: str) -> None:
    kind = ALL[name]
    example = Example("a/0", dict.fromkeys(FIELDS, "aaaa"), ("bbbb", "cccc"))
    limit = fewest(kind)
    assert max(map(len, views(encode(kind, example, limit)))) <= limit
    with pytest.raises(UsageError, match=f"needs {limit} or more"):
        encode(kind, example, limit - 1)
