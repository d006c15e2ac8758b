"""finetune.Regressor learns numbers of any unit, and works with scikit-learn's tools."""

import pickle  # noqa: TID251  (scikit-learn users pickle estimators)

import numpy as np
import pytest
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_score

import finetune
from task_formats import FORMATS, Classes, Range, Task, UsageError
from tests.sklearn.conftest import PAIRS, TEXTS

WETNESS = [4.0 + n % 2 if "ain" in text or "wet" in text else 1.0 for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def make_regressor(make):
    """Makes an unfitted regressor over a tiny base, quick to fit."""
    settings = {**make.keywords, "epochs": 8}
    return lambda **changes: finetune.Regressor(**(settings | changes))


@pytest.fixture(scope="module")
def fitted_regressor(make_regressor):
    """A regressor fitted to texts."""
    return make_regressor().fit(TEXTS, WETNESS)


def test_numbers_are_learned_and_scored_by_their_explained_variance(fitted_regressor):
    predicted = fitted_regressor.predict(TEXTS)
    assert (predicted.shape, predicted.dtype) == ((16,), np.float64)
    assert fitted_regressor.score(TEXTS, WETNESS) == r2_score(WETNESS, predicted) > 0.8
    assert is_regressor(fitted_regressor)


@pytest.mark.parametrize(("factor", "offset"), [(1000, -7e4), (1e-4, 2.0)])
def test_the_unit_of_the_numbers_does_not_matter(factor, offset, make_regressor, fitted_regressor):
    numbers = factor * np.array(WETNESS) + offset
    predicted = make_regressor().fit(TEXTS, numbers).predict(TEXTS)
    expected = factor * fitted_regressor.predict(TEXTS) + offset
    np.testing.assert_allclose(predicted, expected, atol=0.02 * abs(factor))


def test_pairs_and_cross_validation(make_regressor):
    model = make_regressor(format="similarity").fit(PAIRS, WETNESS)
    mirrored = model.predict([pair[::-1] for pair in PAIRS])
    np.testing.assert_allclose(mirrored, model.predict(PAIRS), atol=1e-4)
    scores = cross_val_score(make_regressor(epochs=16), TEXTS, WETNESS, cv=KFold(2))
    assert (scores > 0.5).all(), "each half has the same texts"


def test_rows_of_a_task_with_a_range(make_regressor, tmp_path):
    task = Task(FORMATS["classification"], {"text": "review"}, Range(0, 5), metrics=("pearson",))
    rows = [{"review": text} for text in TEXTS]
    model = make_regressor(task=task, folder=tmp_path / "run").fit(rows, WETNESS)
    answers = finetune.load(tmp_path / "run").predict(rows)
    np.testing.assert_array_equal(model.predict(rows), [answer.label for answer in answers])


def test_copies_predict_the_same(fitted_regressor):
    again = pickle.loads(pickle.dumps(fitted_regressor))  # noqa: S301
    np.testing.assert_array_equal(again.predict(TEXTS), fitted_regressor.predict(TEXTS))
    fresh = clone(fitted_regressor)
    assert fresh.get_params() == fitted_regressor.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(TEXTS)


@pytest.mark.parametrize(
    ("settings", "X", "y", "message"),
    [
        ({}, ["a", "b"], [1.0, float("nan")], r"y\[1\] is nan, not a finite number"),
        ({}, ["a", "b"], ["good", "bad"], r"y\[0\] is 'good', not a finite number\n.*Classifier"),
        ({}, ["a", "b"], [2, 2], "at least two different numbers, and all are 2"),
        ({}, ["a", "b"], [[1, 2], [3, 4]], "y should be a 1d array"),
        ({}, ["a", "b"], [1, 2, 3], "inconsistent numbers of samples"),
        ({}, ["a", " "], [1, 2], r"X\[1\]: empty text"),
        ({"task": "rte"}, [{"sentence1": "a", "sentence2": "b"}] * 2, [0, 1], "classes, not sc"),
        ({"task": "stsb"}, [{"sentence1": "a", "sentence2": "b"}] * 2, [0, 6], r"y\[1\]: label 6"),
        ({"format": "multiple_choice"}, ["a", "b"], [0, 1], "does not read a text"),
    ],
)
def test_a_mistake_is_one_message(settings, X, y, message, make_regressor):
    with pytest.raises(ValueError, match=message):
        make_regressor(**settings).fit(X, y)


def test_a_task_with_classes_is_for_the_classifier(make_regressor):
    task = Task(FORMATS["classification"], {"text": "text"}, Classes.of(["a", "b"]))
    with pytest.raises(UsageError, match="classes, not scores") as caught:
        make_regressor(task=task).fit([{"text": text} for text in TEXTS], WETNESS)
    assert "Classifier" in caught.value.cure
