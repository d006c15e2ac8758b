"""finetune.Classifier has scikit-learn's manners."""

import copy
import enum
import functools
from collections import OrderedDict

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

import finetune
from finetune.recipe.schema import BaseConfig, Recipe
from task_formats import FORMATS, Classes, Task
from tests.support import jobs, weather
from tests.support.weather import LABELS, PAIRS, TEXTS


@pytest.fixture(scope="module")
def make(bases):
    """Makes a classifier over a tiny base, quick to fit."""
    return functools.partial(weather.classifier, bases("gpt2"))


@pytest.fixture(scope="module")
def fitted(make):
    return make().fit(TEXTS, LABELS)


# -- what it learns and says -------------------------------------------------------------------


def test_it_learns_texts(fitted) -> None:
    assert fitted.classes_.tolist() == ["dry", "wet"]
    assert fitted.predict(TEXTS).tolist() == LABELS
    assert fitted.score(TEXTS, LABELS) == 1.0
    assert fitted.score(TEXTS[:4], ["wet", "dry", "wet", "unheard of"]) == 0.5
    assert fitted.score(TEXTS[:2], ["wet", "dry"], sample_weight=[3, 1]) == 0.75


def test_probabilities_stand_in_the_order_of_the_classes(fitted) -> None:
    table = fitted.predict_proba(TEXTS)
    assert table.shape == (16, 2)
    np.testing.assert_allclose(table.sum(axis=1), 1)
    assert (fitted.classes_[table.argmax(axis=1)] == fitted.predict(TEXTS)).all()


@pytest.mark.parametrize("format", [None, "entailment", "similarity"])
def test_it_learns_pairs(format, make) -> None:
    pairs = make(format=format).fit(PAIRS, LABELS)
    assert pairs.score(PAIRS, LABELS) == 1.0
    assert pairs.score(np.array(PAIRS), LABELS) == 1.0
    mirrored = [pair[::-1] for pair in PAIRS]
    same = np.allclose(pairs.predict_proba(mirrored), pairs.predict_proba(PAIRS), atol=1e-6)
    assert same == (format == "similarity")


class Weather(enum.IntEnum):
    DRY = 3
    WET = 7


@pytest.mark.parametrize(
    ("dry", "wet", "dtype"),
    [
        (0, 1, np.int64),
        (7, -1, np.int64),
        (False, True, np.bool_),
        (1.0, 2.0, np.float64),
        ("yes", "no", np.str_),
        (" a", "a ", np.str_),
        (("a", 1), ("b", 2), object),
        (Weather.DRY, Weather.WET, object),
        (np.int8(3), np.int8(-4), object),
        (b"x", b"y", object),
    ],
    ids=str,
)
def test_labels_come_back_as_they_were(dry, wet, dtype, make, monkeypatch) -> None:
    labels = [wet if label == "wet" else dry for label in LABELS]
    model = make().fit(TEXTS, labels)
    found = model.predict(TEXTS)
    assert np.issubdtype(found.dtype, dtype)
    assert found.tolist() == labels
    assert model.classes_.tolist() == sorted([dry, wet])
    assert model.score(TEXTS, labels) == 1.0
    if dtype is object:
        assert {type(label) for label in found} == {type(wet)}


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, "<U5", "S3", object])
def test_arrays_of_labels_keep_their_type(dtype, make) -> None:
    labels = np.array([1 if label == "wet" else 2 for label in LABELS]).astype(dtype)
    model = make(epochs=0.5).fit(np.array(TEXTS), labels)
    assert model.classes_.dtype == model.predict(TEXTS).dtype == np.dtype(dtype)
    assert model.classes_.tolist() == np.unique(labels).tolist()


def test_three_classes_and_a_column_of_labels(make) -> None:
    labels = np.array([["b"], ["a"], ["c"], ["a"]] * 4)
    with pytest.warns(UserWarning, match="column-vector"):
        model = make(epochs=0.5).fit(TEXTS, labels)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.predict_proba(TEXTS).shape == (16, 3)


# -- rows of a task ----------------------------------------------------------------------------


def test_rows_of_a_shipped_recipe(make) -> None:
    rows = [{"sentence1": one, "sentence2": other, "idx": 7} for one, other in PAIRS]
    labels = [0 if label == "wet" else 1 for label in LABELS]
    model = make(task="rte").fit(rows, labels)
    assert model.predict(rows).tolist() == labels
    named = ["entailment" if label == 0 else "not_entailment" for label in labels]
    assert make(task="rte").fit(rows, named).predict(rows).tolist() == named


def test_rows_of_a_frame(make) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    model = make(format="classification").fit(frame[["text"]], frame["label"])
    assert model.predict(frame).tolist() == LABELS
    alone = make().fit(frame["text"], frame["label"])
    np.testing.assert_array_equal(alone.predict_proba(frame.text), model.predict_proba(frame))


def test_rows_that_code_reads(make) -> None:
    def read(row):
        return {"said": " ".join(row["words"]), "label": "not for you"}

    task = Task(FORMATS["classification"], {"text": "said", "label": "label"},
                Classes.of(["wet", "dry"]), read=read)  # fmt: skip
    rows = [{"words": np.array(text.split()), "stamp": object()} for text in TEXTS]
    model = make(task=task).fit(rows, LABELS)
    assert model.predict(rows).tolist() == LABELS
    joined = make().fit(TEXTS, LABELS)
    np.testing.assert_array_equal(model.predict_proba(rows), joined.predict_proba(TEXTS))


def test_choices_of_a_task(make, tmp_path, bases) -> None:
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path)
    choices = [
        {"story": "Look.", "question": "Where?", "choices": ["the horse", "the rain"]},
        {"story": "Look.", "question": "Where?", "choices": ["the rain", "the horse", "x"]},
    ]
    rows, labels = choices * 8, [0, 1] * 8
    model = make(task=recipe).fit(rows, labels)
    assert model.predict(rows).tolist() == labels
    assert model.predict_proba(rows).shape == (16, 2)


def test_fewer_classes_than_the_task_knows(make, tmp_path, bases) -> None:
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path)
    rows, labels = [{"text": text} for text in TEXTS], [2 if x == "wet" else 0 for x in LABELS]
    model = make(task=recipe).fit(rows, labels)
    assert model.classes_.tolist() == [0, 2]
    assert model.predict(rows).tolist() == labels


def test_settings_are_the_recipes_unless_said(make, tmp_path, bases) -> None:
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path, warmup=0.25)
    rows, labels = [{"text": text} for text in TEXTS], [2 if x == "wet" else 0 for x in LABELS]
    model = finetune.Classifier(task=recipe, epochs=np.float64(1.0), folder=tmp_path / "run")
    model.set_params(weight_decay=0.5, base=str(bases("gpt2")), random_state=3)
    model.fit(rows, labels)
    said = finetune.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (said.train.warmup, said.train.batch_size, said.train.epochs) == (0.25, 8, 1)
    assert (said.train.weight_decay, said.train.seed) == (0.5, 3)
    assert said.base == BaseConfig(path=str(bases("gpt2")), dropout=0)


def test_a_recipe_of_ones_own_task_keeps_its_base(bases) -> None:
    recipe = Recipe(task=jobs.TASKS["classification"], base=BaseConfig(path=str(bases("gpt2"))))
    rows = [{"text": text} for text in TEXTS]
    model = finetune.Classifier(task=recipe, epochs=0.1, max_tokens=48)
    assert model.fit(rows, [0, 1] * 8).predict(rows).shape == (16,)


# -- scikit-learn's manners --------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_estimators_unfitted",
        "check_get_params_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
def test_scikit_learns_own_checks(check, make) -> None:
    """Those that do not feed it numbers."""
    getattr(checks, check)("Classifier", make())


def test_nothing_happens_before_fit(make) -> None:
    wrong = finetune.Classifier(base=object(), epochs="many", folder=3)
    assert wrong.get_params()["epochs"] == "many"
    assert is_classifier(wrong)
    assert "n_features_in_" not in vars(make().fit(TEXTS, LABELS))


def test_fit_gives_the_classifier_and_leaves_its_parameters(make) -> None:
    model = make(random_state=5)
    before = copy.deepcopy(model.get_params())
    assert model.fit(TEXTS, LABELS) is model
    assert model.get_params() == before
    assert clone(model).get_params() == before
    with pytest.raises(NotFittedError):
        clone(model).predict(TEXTS)


def test_seeds_decide(make) -> None:
    def table(state) -> np.ndarray:
        return make(epochs=0.5, random_state=state).fit(TEXTS, LABELS).predict_proba(TEXTS)

    np.testing.assert_array_equal(table(None), table(None))
    np.testing.assert_array_equal(table(7), table(7))
    assert (table(7) != table(8)).any()
    drawn = np.random.RandomState(0)
    assert (table(drawn) != table(drawn)).any()


def test_a_second_fit_forgets_the_first(make) -> None:
    model = make().fit(PAIRS, [label.upper() for label in LABELS])
    np.testing.assert_array_equal(
        model.fit(TEXTS, LABELS).predict_proba(TEXTS),
        make().fit(TEXTS, LABELS).predict_proba(TEXTS),
    )
    assert model.classes_.tolist() == ["dry", "wet"]


def test_it_stands_in_a_pipeline(make) -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    steps = Pipeline([("lower", lower), ("model", make())])
    assert steps.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0
    assert steps.set_params(model__epochs=1).get_params()["model__epochs"] == 1


def test_cross_validation_and_grid_search(make) -> None:
    assert cross_val_score(make(), TEXTS, LABELS, cv=2).tolist() == [1.0, 1.0]
    rows = [OrderedDict(text=text) for text in TEXTS]
    search = GridSearchCV(
        make(format="classification"), {"learning_rate": np.array([1e-12, 1e-2])}, cv=2
    )
    search.fit(rows, LABELS)
    assert search.best_params_ == {"learning_rate": 1e-2}
    assert search.predict(rows).tolist() == LABELS
    scored = cross_validate(make(), TEXTS, LABELS, cv=2, scoring="roc_auc", error_score="raise")
    assert scored["test_score"].tolist() == [1.0, 1.0]
