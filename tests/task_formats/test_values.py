"""task.values: words that replace the values of a column, as for COPA's questions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from task_formats import FORMATS, Classes, RowError, Task, UsageError

WORDS = {"asks": {"cause": "because", "effect": "so"}}
ROW = {"premise": "It rained", "asks": "effect", "a": "we stayed", "b": "we left", "label": 1}
COLUMNS = {"context": "{premise} {asks}", "choices": ["a", "b"], "label": "label"}


def make_task(columns=COLUMNS, values=WORDS):
    return Task(
        FORMATS["multiple_choice"], columns, Classes.of({0: "one", 1: "two"}), values=values
    )


@pytest.mark.parametrize(
    ("asks", "word"), [("effect", "so"), ("cause", "because"), (" cause ", "because")]
)
def test_the_word_replaces_the_value_in_a_template(asks, word):
    example = make_task().example({**ROW, "asks": asks}, "train/0")
    assert example.fields == {"context": f"It rained {word}"}


def test_words_replace_values_in_plain_columns_and_choices():
    columns = {"context": "asks", "choices": ["{asks} {a}", "b"], "label": "label"}
    example = make_task(columns).example(ROW, "train/0")
    assert (example.fields["context"], example.choices) == ("so", ("so we stayed", "we left"))


def test_the_error_for_an_unknown_value_suggests_the_nearest():
    with pytest.raises(RowError, match=r"'effects' in column 'asks'.*\n.*'effect'"):
        make_task().example({**ROW, "asks": "effects"}, "train/0")


def test_values_of_an_unused_column_are_an_error():
    with pytest.raises(UsageError, match=r"'ask' in task.values is not used\n.*'asks'"):
        make_task(values={"ask": {"cause": "because"}})


@given(
    st.dictionaries(
        st.integers(), st.text("xyz ", min_size=1).map(lambda word: f"<{word}>"), min_size=1
    )
)
def test_numbers_are_replaced_too(words):
    task = make_task(values={"asks": {str(key): word for key, word in words.items()}})
    for key, word in words.items():
        assert task.example({**ROW, "asks": key}, "x").fields["context"] == f"It rained {word}"
