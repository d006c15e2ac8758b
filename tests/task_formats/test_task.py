"""A task turns a row into an example; errors name the column and the cure."""

import math
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from task_formats import (
    FORMATS,
    Classes,
    Example,
    Format,
    MultiLabel,
    Prompt,
    Range,
    RowError,
    Task,
    UsageError,
)

YES_NO = Classes.of({0: "no", 1: "yes"})
PAIRS = Task(FORMATS["entailment"], {"premise": "a", "hypothesis": "b", "label": "y"}, YES_NO)
LETTERS = Classes.of({"A": "A", "B": "B", "C": "C", 1: "A", 2: "B", 3: "C"})


def choosing(choices: Any = "options", **rest: Any) -> Task:
    columns = {"context": "{text} {question}", "choices": choices, "label": "answer"}
    return Task(FORMATS["multiple_choice"], columns, LETTERS, **rest)


def test_a_row_becomes_an_example_and_does_not_change() -> None:
    row = MappingProxyType({"a": " It rains. ", "b": "n/a", "y": "1", "more": object()})
    assert PAIRS.example(row, "train/3") == Example(
        "train/3", {"premise": "It rains.", "hypothesis": "n/a"}, (), 1
    )


@pytest.mark.parametrize("value", [3, 2.5, "nan", "NA", "null", "None", "n/a", "-"])
def test_numbers_and_words_like_nan_are_text(value) -> None:
    assert PAIRS.example({"a": value, "b": "h", "y": 0}, "x/0").fields["premise"] == str(value)


def test_choices_come_from_a_list_or_from_several_columns() -> None:
    row = {"text": "T", "question": "Q?", "options": ["x", "y"], "answer": "B"}
    expected = Example("x/0", {"context": "T Q?"}, ("x", "y"), 1)
    assert choosing().example(row, "x/0") == expected
    row = {"text": "T", "question": "Q?", "o1": "x", "o2": "y", "answer": 2}
    assert choosing(["o1", "{o2}"]).example(row, "x/0") == expected


def test_choices_come_from_nested_columns() -> None:
    options = {"label": ["A", "B", "C"], "text": ["x", "y", "z"]}
    row = {"text": "T", "question": "Q?", "options": options, "answer": "C"}
    assert choosing("options.text").example(row, "x/0").choices == ("x", "y", "z")
    row["options"] = [{"text": "x"}, {"text": "y"}]
    row["answer"] = "A"
    assert choosing("options.text").example(row, "x/0").choices == ("x", "y")


def test_rows_that_need_code_go_through_read_first() -> None:
    def read(row):
        return {"a": row["both"][0], "b": row["both"][1], "y": not row["different"]}

    task = replace(PAIRS, labels=Classes.of({True: "same", False: "different"}), convert_row=read)
    example = task.example({"both": ("p", "h"), "different": True}, "x/0")
    assert (example.fields, example.label) == ({"premise": "p", "hypothesis": "h"}, 1)


# -- labels that are missing -----------------------------------------------------------------------


@pytest.mark.parametrize("label", [-1, "-1", -1.0, "-1.0", None, "", " ", math.nan])
@pytest.mark.parametrize("task", [PAIRS, replace(PAIRS, labels=Range(0, 5))])
def test_a_missing_label_is_an_error_only_for_training(task, label) -> None:
    row = {"a": "p", "b": "h", "y": label}
    assert task.example(row, "x/0", labelled=False).label is None
    with pytest.raises(RowError, match="no label"):
        task.example(row, "x/0")


def test_minus_one_can_be_a_label() -> None:
    row = {"a": "p", "b": "h", "y": -1.0}
    assert replace(PAIRS, labels=Classes.of({-1: "down", 1: "up"})).example(row, "x/0").label == 0
    assert replace(PAIRS, labels=Range(-2, 2)).example(row, "x/0").label == -1.0


def test_unlabelled_raw_values_are_none() -> None:
    task = replace(PAIRS, unlabelled=frozenset({"-", "9"}))
    for mark in ("-", 9, 9.0):
        assert task.example({"a": "p", "b": "h", "y": mark}, "x/0", labelled=False).label is None


def test_prediction_needs_no_label_column_but_reads_an_existing_one() -> None:
    assert PAIRS.example({"a": "p", "b": "h"}, "x/0", labelled=False).label is None
    assert PAIRS.example({"a": "p", "b": "h", "y": "yes"}, "x/0", labelled=False).label == 1
    with pytest.raises(RowError, match="unknown label 'yess'"):
        PAIRS.example({"a": "p", "b": "h", "y": "yess"}, "x/0", labelled=False)


# -- rows that are wrong ---------------------------------------------------------------------------

GOOD = {"text": "T", "question": "Q?", "options": ["x", "y"], "answer": "A"}


@pytest.mark.parametrize(
    ("task", "change", "fault", "cure"),
    [
        (PAIRS, {"a": None}, "'a' is empty", "Fill it in"),
        (PAIRS, {"a": math.nan}, "'a' is empty", "Fill it in"),
        (PAIRS, {"a": " \n"}, "empty text for 'premise'", "Fill it in"),
        (PAIRS, {"a": ["p"]}, "'a' must hold text (got a list)", ""),
        (PAIRS, {"a": b"p"}, "'a' must hold text (got a bytes)", ""),
        (PAIRS, {"a": ...}, "no column 'a'", "Known: A_, b, y"),
        (PAIRS, {"y": ...}, "no column 'y'", "Known: A_, a, b"),
        (PAIRS, {"y": 2}, "unknown label 2", "Known: 0, 1, no, yes"),
        (choosing(), {"question": ...}, "no column 'question'", "Did you mean 'question_'"),
        (choosing(), {"options": ["x"]}, "1 choices in column 'options'", "two"),
        (choosing(), {"options": "xy"}, "list of choices (got 'xy')", "choices: [ending1"),
        (choosing(), {"options": ["x", ""]}, "choice 2 in column 'options' is empty", "Fill"),
        (choosing(), {"options": ["x", None]}, "empty", "Fill"),
        (choosing(), {"options": list("wxyz")}, "4 choices but 3 labels", "task.labels"),
        (choosing(), {"answer": "C"}, "label 'C' is choice 3 of 2", ""),
    ],
)  # fmt: skip
def test_the_error_of_a_row_names_its_column_and_the_cure(task, change, fault, cure) -> None:
    row = {"a": "p", "b": "h", "y": 1, "A_": 0} if task is PAIRS else {**GOOD, "question_": 0}
    assert task.example(row, "x/0").label is not None
    row = {name: value for name, value in {**row, **change}.items() if value is not ...}
    with pytest.raises(RowError) as caught:
        task.example(row, "x/0")
    assert fault in caught.value.what
    assert cure in caught.value.cure


# -- tasks that are wrong --------------------------------------------------------------------------

BOTH = {"premise": "a", "hypothesis": "b"}


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"premise": "a"}, "'hypothesis' is missing"),
        ({**BOTH, "hypotesis": "c"}, "'hypotesis' in task.columns is not used.*mean 'hypothesis'"),
        ({**BOTH, "labels": "y"}, "'labels' in task.columns is not used.*mean 'label'"),
        ({**BOTH, "choices": "c"}, "'choices' in task.columns is not used"),
        ({**BOTH, "premise": ["a", "b"]}, "premise: must not be a list"),
        ({**BOTH, "label": ["a", "b"]}, "label: must not be a list"),
        ({**BOTH, "label": "{y}"}, "label: must not be a template"),
        ({**BOTH, "premise": "{a"}, "braces"),
    ],
)
def test_columns_that_do_not_fit_the_format_are_errors(columns, fault: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){fault}"):
        Task(FORMATS["entailment"], columns, YES_NO)


def test_multiple_choice_with_a_range_is_an_error() -> None:
    with pytest.raises(UsageError, match="needs labels, not a range"):
        Task(FORMATS["multiple_choice"], {"context": "a", "choices": "b"}, Range(0, 1))


def test_the_positive_class_is_the_given_one_or_the_second_of_two() -> None:
    assert PAIRS.positive_class == "yes"
    assert replace(PAIRS, positive="no").positive_class == "no"
    assert choosing().positive_class is None
    assert replace(PAIRS, labels=Range(0, 5)).positive_class is None


def test_without_labels_the_label_column_is_never_read() -> None:
    row = {"a": "p", "b": "h", "y": "unknown"}
    example = PAIRS.without_labels().example(row, "x/0", labelled=False)
    assert example == Example("x/0", {"premise": "p", "hypothesis": "h"})


def test_without_its_prompt_a_task_reads_only_what_the_format_needs() -> None:
    task = Task(
        Format((("{text}",),)),
        {"text": "{a} {b}", "topic": "c", "label": "y"},
        YES_NO,
        prompt=Prompt("{topic}: {text}", {"no": "n", "yes": "y"}),
        values={"b": {"1": "one"}, "c": {"2": "two"}},
    )
    bare = task.without_prompt()
    assert (task.text_columns, bare.text_columns) == ({"a", "b", "c"}, {"a", "b"})
    assert (bare.prompt, bare.values) == (None, {"b": {"1": "one"}})


# -- words for values, as for COPA's questions -----------------------------------------------------

ASKING = Task(
    FORMATS["multiple_choice"],
    {"context": "{premise} {asks}", "choices": ["{asks} {a}", "b"], "label": "y"},
    YES_NO,
    values={"asks": {"cause": "because", "effect": "so", "1": "one"}},
)
RAIN = {"premise": "It rained", "a": "we stayed", "b": "we left", "y": 1}


@pytest.mark.parametrize(("asks", "word"), [("effect", "so"), (" cause ", "because"), (1, "one")])
def test_a_word_replaces_a_value(asks, word: str) -> None:
    example = ASKING.example({**RAIN, "asks": asks}, "train/0")
    assert example.fields == {"context": f"It rained {word}"}
    assert example.choices == (f"{word} we stayed", "we left")
    plain = replace(ASKING, columns={**ASKING.columns, "context": "asks"})
    assert plain.example({**RAIN, "asks": asks}, "train/0").fields == {"context": word}


def test_unknown_values_and_unused_columns_are_errors() -> None:
    with pytest.raises(RowError, match=r"'effects' in column 'asks'.*\n.*'effect'"):
        ASKING.example({**RAIN, "asks": "effects"}, "train/0")
    with pytest.raises(UsageError, match=r"'ask' in task.values is not used\n.*'asks'"):
        replace(ASKING, values={"ask": {"cause": "because"}})


# -- prompts ---------------------------------------------------------------------------------------


def asked(answers: Any, text: str = "{premise}\n{hypothesis}?", task: Task = PAIRS) -> Task:
    return replace(task, prompt=Prompt(text, answers))


def test_answers_are_in_the_order_of_the_labels() -> None:
    prompt = asked({"yes": " True", "no": " False"}).prompt
    assert prompt.answer_texts(Example("x/0", {})) == (" False", " True")
    assert prompt.question(Example("x/0", {"premise": "{p}", "hypothesis": "h"})) == "{p}\nh?"


def test_answers_of_multiple_choice_are_the_choices() -> None:
    prompt = asked(" {choice}", "{context}:", choosing()).prompt
    example = Example("x/0", {"context": "c"}, ("x", "{y}", "z"))
    assert prompt.answer_texts(example) == (" x", " {y}", " z")


@pytest.mark.parametrize(
    ("answers", "text", "fault"),
    [
        ({"yess": " t", "no": " f"}, "{premise}", "unknown label 'yess'.*mean 'yes'"),
        ({"1": " t", "0": " f"}, "{premise}", "unknown label '0'"),
        ({"yes": " t"}, "{premise}", "the label 'no' is missing"),
        ({}, "{premise}", "needs answers"),
        (" {choice}", "{premise}", "do not fit the format"),
        ("no hole", "{premise}", "without {choice}"),
        ({"yes": " t", "no": " f"}, "{premis}", "unknown field 'premis'.*mean 'premise'"),
        ({"yes": " t", "no": " f"}, "{label}", "unknown field 'label'"),
        ({"yes": " t", "no": " f"}, "{premise", "braces"),
    ],
)
def test_a_prompt_that_does_not_fit_the_task_is_an_error(answers, text: str, fault: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){fault}"):
        asked(answers, text)


def test_answers_that_do_not_fit_choices_or_scores_are_errors() -> None:
    with pytest.raises(UsageError, match="do not fit the format"):
        asked({"A": "a", "B": "b", "C": "c"}, "{context}", choosing())
    scored = replace(PAIRS, labels=Range(0, 5))
    with pytest.raises(UsageError, match="'high' in answers is not a score from 0 to 5"):
        asked({"0": "low", "high": "high"}, "{premise}", scored)


def test_a_prompt_may_use_fields_that_views_do_not() -> None:
    columns = {"text": "a", "topic": "b", "label": "y"}
    kind = Format((("{text}",),))
    prompt = Prompt("{topic}: {text}", {"no": "n", "yes": "y"})
    task = Task(kind, columns, YES_NO, prompt=prompt)
    example = task.example({"a": "A", "b": "B", "y": 0}, "x/0")
    assert task.prompt.question(example) == "B: A"
    with pytest.raises(UsageError, match=r"'topic' in task\.columns is not used"):
        Task(kind, columns, YES_NO)


# -- several labels --------------------------------------------------------------------------------


def test_several_labels_are_in_one_column_or_in_one_each() -> None:
    labels = MultiLabel(Classes.of(["sun", "rain"]))
    one = Task(FORMATS["classification"], {"text": "text", "label": "tags"}, labels)
    assert one.example({"text": "a", "tags": "rain"}, "x").label == (0.0, 1.0)
    assert one.example({"text": "a", "tags": []}, "x").label == (0.0, 0.0)
    assert one.example({"text": "a", "tags": ""}, "x", labelled=False).label is None
    with pytest.raises(RowError, match="no label"):
        one.example({"text": "a", "tags": ""}, "x")
    each = replace(one, columns={"text": "text", "label": ["rain", "sun"]})
    assert each.example({"text": "a", "sun": "0", "rain": "1"}, "x").label == (0.0, 1.0)
    assert each.example({"text": "a", "sun": "", "rain": ""}, "x", labelled=False).label is None
    assert each.example({"text": "a"}, "x", labelled=False).label is None
    with pytest.raises(RowError, match="no column 'sun'"):
        each.example({"text": "a", "rain": 1}, "x")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"labels": YES_NO}, "must not be a list"),
        ({"columns": {"text": "text", "label": ["no", "maybe"]}}, "'maybe' is not one of"),
        ({"format": FORMATS["multiple_choice"]}, "multiple choice needs labels"),
        ({"prompt": Prompt("{text}", {"no": "No", "yes": "Yes"})}, "several labels"),
    ],
)
def test_several_labels_fit_no_choices_and_prompts(change, what: str) -> None:
    columns = {"text": "text", "label": ["no", "yes"]}
    options = {"format": FORMATS["classification"], "columns": columns}
    with pytest.raises(UsageError, match=what):
        Task(**{**options, "labels": MultiLabel(YES_NO), **change})
