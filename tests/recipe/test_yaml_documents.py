"""YAML files: plain values of YAML 1.2 with lines; tags, aliases and deep nesting are refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe.yaml_documents import MAX_DEPTH, parse_document, parse_value, write_document
from task_formats import UsageError

keys = st.text() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False)
trees = st.recursive(
    keys | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def read(text):
    return parse_document(text, "a.yaml").data["x"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("6.25E-5", 6.25e-5),
        ("1e5", 1e5),
        (".5", 0.5),
        ("-5.", -5.0),
        ("+3", 3),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("yes", "yes"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("none", "none"),
        ("<<", "<<"),
        ("=", "="),
        (".inf", math.inf),
        ("1.2.3", "1.2.3"),
        ("'3'", "3"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text, value):
    found = read(f"x: {text}")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", "a.yaml", "must contain a mapping (got null)"),
        ("- 1", "a.yaml", "must contain a mapping (got [1])"),
        ("five", "a.yaml", "must contain a mapping (got 'five')"),
        ("x: 1\ny: 2\nx: 3", "a.yaml, line 3, column 1", "the key 'x' twice"),
        ("x: {1: a, 01: b}", "a.yaml, line 1, column 11", "the key 1 twice"),
        ("x: {1: a, true: b}", "a.yaml, line 1, column 11", "the key True twice"),
        ("x: {1: {a: 1, a: 2}}", "a.yaml, line 1, column 15", "the key 'a' twice"),
        ("x: &a 1\ny: *a", "a.yaml, line 1, column 4", "an anchor or alias"),
        ("x: *a", "a.yaml, line 1, column 4", "an anchor or alias"),
        ("x: !!python/object/apply:os.system [ls]", "a.yaml, line 1, column 4", "the tag"),
        ("!!python/name:os.system x", "a.yaml, line 1, column 1", "the tag"),
        ("x: !include /etc/passwd", "a.yaml, line 1, column 4", "the tag '!include'"),
        ("? [a]\n: 1", "a.yaml, line 1, column 3", "a key that is not a scalar"),
        ("x: [1, 2", "a.yaml, line 1, column 9", "expected"),
        ("x: {y: 1\nz: 2", "a.yaml, line 2, column 2", "expected ',' or '}'"),
        ("x: a: b", "a.yaml, line 1, column 5", "mapping values are not allowed here"),
        ("\tx: 1", "a.yaml, line 1, column 1", "cannot start any token"),
        ("x: 1\n---\nx: 2", "a.yaml, line 2, column 1", "another document"),
        ("x: \0", "a.yaml", "unacceptable character #x0000"),
        (f"x: {'9' * 5000}", "a.yaml", "value has 5000 digits"),
        ("[" * 100_000, f"a.yaml, line 1, column {MAX_DEPTH + 1}", "more than 32 levels"),
        ("{a: " * 50_000, "a.yaml, line 1, column 129", "more than 32 levels"),
        ("- " * 50_000, "a.yaml, line 1, column 65", "more than 32 levels"),
    ],
)
def test_invalid_yaml_is_an_error_with_its_place(text, place, what):
    with pytest.raises(UsageError) as caught:
        parse_document(text, "a.yaml")
    assert caught.value.where == place
    assert what in caught.value.what
    assert caught.value.cure


def test_every_key_and_item_has_its_line():
    lines = parse_document("a:\n  b: [1,\n    2]\n\n0: {c: d}\n", "a.yaml").lines
    inner = {("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3}
    assert lines == {("a",): 1, **inner, (0,): 5, (0, "c"): 5}


@given(st.dictionaries(keys, trees))
def test_what_is_written_reads_back_the_same(data):
    if data:
        assert parse_document(write_document(data), "a.yaml").data == data


@given(st.text(":-{}[],&*!|>'\"%@`#?~ \n\tx01.e"))
def test_a_text_is_a_mapping_or_refused_with_its_place(text):
    place = ""
    try:
        data = parse_document(text, "a.yaml").data
    except UsageError as error:
        data, place = {}, error.where
    assert isinstance(data, dict)
    assert not place or place.startswith("a.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("3e-5", 3e-5),
        ("null", None),
        ("[a, b]", ["a", "b"]),
        ("{0: no}", {0: "no"}),
        ("yes", "yes"),
        ("five # six", "five # six"),
        (" padded ", " padded "),
        ("a: b: c", "a: b: c"),
        ("{unclosed", "{unclosed"),
        (r'"two\nlines"', "two\nlines"),
        ('"quoted" and more', '"quoted" and more'),
    ],
)
def test_a_value_of_the_command_line(text, value):
    assert parse_value(text) == value
