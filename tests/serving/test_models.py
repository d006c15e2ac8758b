"""Rows of a task as a pydantic model: what it asks for, and that it gives the task's own rows."""

import pytest
from pydantic import ValidationError

from finetune.recipe.loading import load_recipe
from finetune.serving.models import describe, make_prediction_model, make_row_model
from task_formats import FORMATS, Classes, MultiLabel, Prediction, Range, Task

LABELS = Classes.of(["no", "yes"])


def row_model(task: Task):
    return make_row_model(task.without_prompt().without_labels())


def read(model, row):
    return model.model_validate(row).model_dump(by_alias=True)


def errors(model, row) -> list[tuple]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(row)
    return [(error["loc"], error["type"]) for error in caught.value.errors()]


def test_a_field_for_each_column_whatever_its_name():
    columns = {"premise": "my text (long)", "hypothesis": "_model config", "label": "label"}
    model = row_model(Task(FORMATS["entailment"], columns, LABELS))
    schema = model.model_json_schema()
    assert schema["required"] == ["my text (long)", "_model config"]
    assert {field["type"] for field in schema["properties"].values()} == {"string"}
    row = {"my text (long)": "a", "_model config": "b"}
    assert read(model, {**row, "label": "no", "id": 3}) == row


@pytest.mark.parametrize("value", ["", " \n", None, ["a"], {}, True])
def test_a_value_that_is_no_text_is_refused_with_its_column(value):
    model = row_model(Task(FORMATS["classification"], {"text": "review"}, LABELS))
    [(place, _)] = errors(model, {"review": value})
    assert place == ("review",)
    assert errors(model, {}) == [(("review",), "missing")]
    assert errors(model, [])[0][0] == ()


def test_numbers_are_texts_as_in_a_file():
    model = row_model(Task(FORMATS["classification"], {"text": "{age} {city}"}, LABELS))
    assert read(model, {"age": 41, "city": ""}) == {"age": "41", "city": ""}


def test_words_that_are_replaced_are_the_only_values():
    model = row_model(load_recipe("copa").task.build())
    schema = model.model_json_schema()["properties"]
    assert list(schema) == ["premise", "question", "choice1", "choice2"]
    assert schema["question"]["enum"] == ["cause", "effect"]
    row = {"premise": "It rains.", "question": "why", "choice1": "a", "choice2": "b"}
    assert errors(model, row) == [(("question",), "literal_error")]


def test_choices_are_a_list_and_nested_rows_are_understood():
    model = row_model(load_recipe("arc").task.build())
    choices = {"question": "Which?", "choices.text": ["a", "b", "c"]}
    assert read(model, choices) == choices
    nested = {"question": "Which?", "choices": {"text": ["a", "b", "c"], "label": [*"ABC"]}}
    assert read(model, nested) == choices
    assert errors(model, {"question": "Which?", "choices.text": ["a"]})[0][1] == "too_short"
    assert errors(model, {"question": "Which?", "choices.text": [*"abcdef"]})[0][1] == "too_long"
    [(place, _)] = errors(model, {"question": "Which?", "choices.text": ["a", " "]})
    assert place == ("choices.text", 1)


def test_code_of_a_task_takes_any_row():
    task = Task(FORMATS["classification"], {"text": "text"}, LABELS, convert_row=dict)
    row = {"anything": [1, {"x": None}]}
    assert read(row_model(task), row) == row


def test_predictions_have_the_labels_of_the_task_or_a_score():
    classes = Task(FORMATS["classification"], {"text": "text"}, LABELS)
    label = make_prediction_model(classes).model_json_schema()["properties"]["label"]
    assert label["enum"] == ["no", "yes"]
    several = Task(FORMATS["classification"], {"text": "text"}, MultiLabel(LABELS))
    model = make_prediction_model(several)
    answer = describe(Prediction("x", ("yes",), (0.2, 0.9)), several)
    assert answer == {"labels": ["yes"], "probabilities": {"no": 0.2, "yes": 0.9}}
    assert model.model_validate(answer).model_dump() == answer
    scores = Task(FORMATS["classification"], {"text": "text"}, Range(0, 5))
    assert list(make_prediction_model(scores).model_json_schema()["properties"]) == ["score"]
