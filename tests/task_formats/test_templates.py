"""Templates contain only names: no attributes, no indices, no code; values are not templates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_formats import UsageError, templates

NAME = st.text(st.characters(exclude_characters="{}"), min_size=1, max_size=8)
TEXT = st.text(max_size=20)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@given(TEXT)
def test_an_escaped_text_is_filled_with_itself(text: str) -> None:
    assert templates.field_names(escaped(text)) == ()
    assert templates.fill(escaped(text), {}) == text


@given(st.lists(st.tuples(TEXT, NAME, TEXT), max_size=4), TEXT)
def test_names_are_replaced_and_values_are_not_templates(parts, tail) -> None:
    template = "".join(f"{escaped(text)}{{{name}}}" for text, name, _ in parts) + escaped(tail)
    values = {name: value for _, name, value in parts}
    assert templates.field_names(template) == tuple(name for _, name, _ in parts)
    expected = "".join(text + values[name] for text, name, _ in parts) + tail
    assert templates.fill(template, values) == expected


@pytest.mark.parametrize(
    "hole", ["a.__class__", "a[0]", "a!r", "a:>10", "0", " a", "a.b", "__import__('os')", "a()"]
)
def test_a_name_is_never_an_expression(hole: str) -> None:
    assert templates.field_names(f"{{{hole}}}") == (hole,)
    with pytest.raises(UsageError):
        templates.fill(f"{{{hole}}}", {"a": "value"})
    assert templates.fill(f"{{{hole}}}", {"a": "value", hole: "taken"}) == "taken"


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a", "a}", "{{a}", "{a}}", "{a{b}}", "}{"])
def test_unbalanced_and_empty_braces_are_errors(template: str) -> None:
    with pytest.raises(UsageError, match="braces") as caught:
        templates.field_names(template)
    assert repr(template) in str(caught.value)


def test_the_error_for_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'premise'"):
        templates.fill("{premis}", {"premise": "x", "hypothesis": "y"})


@pytest.mark.parametrize("path", ["a.real", "a.__class__", "a.0", "a.b.c", "a.", ".a", ".", "b"])
def test_a_path_only_enters_mappings(path: str) -> None:
    with pytest.raises(KeyError):
        templates.look_up({"a": 5}, path)


@given(
    st.recursive(
        st.integers(), lambda inner: st.dictionaries(NAME, inner, min_size=1, max_size=3)
    ).filter(lambda value: isinstance(value, dict))
)
def test_every_leaf_is_found_under_its_dotted_path(row) -> None:
    def leaves(value, path):
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from leaves(inner, (*path, name))
        else:
            yield path, value

    for path, leaf in leaves(row, ()):
        # Names with dots of their own are found whole at the top, and only there.
        if not any("." in name for name in path):
            assert templates.look_up(row, ".".join(path)) == leaf
    for name in row:
        assert templates.look_up(row, name) == row[name]


def test_an_exact_name_precedes_a_path() -> None:
    assert templates.look_up({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


def test_a_list_of_mappings_gives_a_list_of_values() -> None:
    row = {"question": {"choices": [{"text": "x", "id": 1}, {"text": "y", "id": 2}]}}
    assert templates.look_up(row, "question.choices.text") == ["x", "y"]
    with pytest.raises(KeyError):
        templates.look_up({"choices": [{"text": "x"}, "y"]}, "choices.text")
