"""Words that stand for what a column holds: COPA's `cause` becomes part of a sentence."""

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
def test_the_word_stands_where_the_template_names_the_column(asks, word):
    example = make_task().example({**ROW, "asks": asks}, "train/0")
    assert example.fields == {"context": f"It rained {word}"}


def test_a_bare_column_and_a_part_of_the_choices_are_words_too():
    columns = {"context": "asks", "choices": ["{asks} {a}", "b"], "label": "label"}
    example = make_task(columns).example(ROW, "train/0")
    assert (example.fields["context"], example.choices) == ("so", ("so we stayed", "we left"))


def test_a_value_without_a_word_is_refused_with_the_nearest():
    with pytest.raises(RowError, match=r"'effects' in column 'asks'.*\n.*'effect'"):
        make_task().example({**ROW, "asks": "effects"}, "train/0")


def test_values_of_a_column_that_nothing_reads_are_refused():
    with pytest.raises(UsageError, match=r"'ask' in task.values is not used\n.*'asks'"):
        make_task(values={"ask": {"cause": "because"}})


@given(
    st.dictionaries(
        st.integers(), st.text("xyz ", min_size=1).map(lambda word: f"<{word}>"), min_size=1
    )
)
def test_a_number_in_the_row_finds_its_word(words):
    task = make_task(values={"asks": {str(key): word for key, word in words.items()}})
    for key, word in words.items():
        assert task.example({**ROW, "asks": key}, "x").fields["context"] == f"It rained {word}"
