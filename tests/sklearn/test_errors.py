"""Messages of finetune.Classifier about samples, labels and parameters it cannot use."""

import pytest
from sklearn.exceptions import NotFittedError

from task_formats import FORMATS, Range, Task, UsageError
from tests.sklearn.conftest import LABELS, PAIRS, TEXTS

SCORES = Task(FORMATS["classification"], {"text": "text"}, Range(0, 5))


@pytest.mark.parametrize(
    ("settings", "X", "y", "message"),
    [
        ({}, TEXTS[:3], [0, 1], "inconsistent numbers of samples"),
        ({}, [], [], "X has no samples"),
        ({}, "a text", ["a"], r"X is 'a text', not a list of samples\nFor one sample write \[X\]"),
        ({}, ["a", "b", " "], [0, 1, 0], r"X\[2\]: empty text for 'text'"),
        ({}, ["a", None], [0, 1], r"X\[1\] is None\nA sample is a text, a pair of texts, or"),
        ({}, ["a", ("a", "b")], [0, 1], r"X\[1\] is a pair, but X\[0\] is a text"),
        ({}, [("a", "b", "c")], [0], r"X\[0\] is \('a', 'b', 'c'\)"),
        ({}, [("a", "b"), ("a", "")], [0, 1], r"X\[1\]: empty text for 'hypothesis'"),
        ({}, ["a", "b"], [1, 1], r"at least two classes and has \[1\]"),
        ({}, ["a", "b"], [1, None], r"y\[1\] is None: no label"),
        ({}, ["a", "b"], [1, float("nan")], r"y\[1\] is nan: no label"),
        ({}, ["a", "b"], [0.5, 1.25], "Unknown label type: continuous"),
        ({}, ["a", "b"], [[0, 2], [1, 1]], "several columns, and not every value is 0 or 1"),
        ({}, ["a", "b"], [{"x"}, set()], "y holds lists of labels\nUse sklearn"),
        ({}, ["a", "b"], [[0, 1]], "inconsistent numbers of samples"),
        ({"task": "rte"}, [{"a": 1}] * 2, [[0, 1], [1, 1]], "this task has one label per row"),
        ({}, ["a", "b"], None, "y should be a 1d array"),
        ({}, [{"text": "a"}, {"text": "b"}], [0, 1], "there is no task to read it"),
        ({"format": "entailment"}, ["a", "b"], [0, 1], "entailment does not read a text"),
        ({"format": "classification"}, [("a", "b")] * 2, [0, 1], "does not read a pair"),
        ({"format": "multiple_choice"}, [{"context": "a"}] * 2, [0, 1], "does not read a row"),
        ({"format": "entailmnt"}, PAIRS, LABELS, "Did you mean 'entailment'"),
        ({"task": "rte"}, TEXTS, LABELS, r"a task reads mappings, but X\[0\] is a text"),
        ({"task": "rtee"}, [{"a": 1}] * 2, [0, 1], "unknown task 'rtee'\nDid you mean 'rte'"),
        ({"task": "rte", "format": "entailment"}, [{}] * 2, [0, 1], "Leave one out"),
        ({"task": "rte"}, [{"sentence1": "a"}] * 2, [0, 1], r"X\[0\]: no column 'sentence2'"),
        ({"task": "copa"}, [{"premise": "a"}] * 2, [0, 2], "unknown label 2"),
        ({"task": SCORES}, [{"text": "a"}] * 2, [0, 1], "scores, not classes"),
        ({"learning_rate": -1}, TEXTS, LABELS, r"train\.learning_rate"),
        ({"layout": "sideways"}, TEXTS, LABELS, r"train\.layout"),
        ({"base": "/no/such/folder"}, TEXTS, LABELS, "no such folder"),
        ({"base": {"dropuot": 0}}, TEXTS, LABELS, "dropout"),
        ({"device": "tpu"}, TEXTS, LABELS, "no device 'tpu'"),
    ],
)
def test_a_mistake_is_one_message(settings, X, y, message, make):
    with pytest.raises(ValueError, match=message) as error:
        make(**settings).fit(X, y)
    assert str(error.value).count("\n") <= 1


def test_labels_the_task_does_not_have(make):
    rows = [{"sentence1": one, "sentence2": other} for one, other in PAIRS]
    for labels, message in [
        (["entailmnt", "not_entailment"], "y: unknown label 'entailmnt'\nDid you mean"),
        (["0", "entailment"], "two labels for one class"),
    ]:
        with pytest.raises(UsageError, match=message):
            make(task="rte").fit(rows[:2], labels)


def test_predict_needs_fit_and_samples_of_the_same_kind(make, fitted):
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(make(), method)(TEXTS)
    with pytest.raises(UsageError, match=r"X\[0\] is a pair, but fit was called with a text"):
        fitted.predict(PAIRS)
    with pytest.raises(UsageError, match=r"X\[1\]: empty text"):
        fitted.predict(["a", ""])
