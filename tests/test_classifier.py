"""finetune.Classifier has scikit-learn's manners."""

import copy
import enum
import pickle  # noqa: TID251  (what scikit-learn's users do)
from collections import OrderedDict

import jobs
import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

import finetune
from finetune.recipe import BasePart, Recipe
from finetune.run import read_result
from task_formats import FORMATS, Classes, Range, Task, UsageError

QUICK = {
    "learning_rate": 1e-2,
    "batch_size": 6,
    "epochs": 4,
    "max_tokens": 48,
    "head_dropout": 0,
    "precision": "fp32",
}
WET = ["It rained all night.", "The street was wet.", "Rain, rain and rain.", "A wet morning."]
DRY = ["He rides a horse.", "A horse on the grass.", "The old atlas.", "A man and his horse."]
TEXTS = [*WET, *DRY] * 2
LABELS = (["wet"] * 4 + ["dry"] * 4) * 2
PAIRS = [(text, "It is wet.") for text in TEXTS]


@pytest.fixture(scope="module")
def make(bases):
    """A classifier over a tiny base without dropout, quick to fit."""

    def with_settings(**settings):
        base = {"path": str(bases("gpt2")), "dropout": 0}
        return finetune.Classifier(**{"base": base, **QUICK, **settings})

    return with_settings


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
    assert said.base == BasePart(path=str(bases("gpt2")), dropout=0)


# -- mistakes ----------------------------------------------------------------------------------

SCORES = Task(FORMATS["classification"], {"text": "text"}, Range(0, 5))


@pytest.mark.parametrize(
    ("settings", "X", "y", "said"),
    [
        ({}, TEXTS[:3], [0, 1], "X has 3 samples and y has 2 labels"),
        ({}, [], [], "X has no samples"),
        ({}, "a text", ["a"], r"X is 'a text', not a list of samples\nFor one sample write \[X\]"),
        ({}, 5, [1], "X is 5, not a list"),
        ({}, ["a", "b", " "], [0, 1, 0], r"X\[2\]: empty text for 'text'"),
        ({}, ["a", None], [0, 1], r"X\[1\] is None\nA sample is a text, a pair of texts, or"),
        ({}, ["a", 5], [0, 1], r"X\[1\] is 5"),
        ({}, ["a", b"b"], [0, 1], r"X\[1\] is b'b'"),
        ({}, ["a", ("a", "b")], [0, 1], r"X\[1\] is a pair and X\[0\] is a text"),
        ({}, [("a", "b", "c")], [0], r"X\[0\] is \('a', 'b', 'c'\)"),
        ({}, [("a", "b"), ("a", "")], [0, 1], r"X\[1\]: empty text for 'hypothesis'"),
        ({}, ["a", "b"], [1, 1], "all labels are 1, and one class is nothing to learn"),
        ({}, ["a", "b"], [1, None], r"y\[1\] is None: no label"),
        ({}, ["a", "b"], [1, float("nan")], r"y\[1\] is nan: no label"),
        ({}, ["a", "b"], [1, "1"], "cannot be put in an order.*\nGive labels of one kind"),
        ({}, ["a", "b"], [[1], [2]], "unhashable"),
        ({}, ["a", "b"], [0.5, 1.25], "Unknown label type: continuous"),
        ({}, ["a", "b"], None, "requires y to be passed, but the target y is None"),
        ({}, [{"text": "a"}, {"text": "b"}], [0, 1], "nothing says how to read it"),
        ({"format": "entailment"}, ["a", "b"], [0, 1], "entailment does not read a text"),
        ({"format": "classification"}, [("a", "b")] * 2, [0, 1], "does not read a pair"),
        ({"format": "multiple_choice"}, [{"context": "a"}] * 2, [0, 1], "does not read a row"),
        ({"format": "entailmnt"}, PAIRS, LABELS, "Did you mean 'entailment'"),
        ({"task": "rte"}, TEXTS, LABELS, r"a task reads mappings, and X\[0\] is a text"),
        ({"task": "rtee"}, [{"a": 1}] * 2, [0, 1], "unknown task 'rtee'\nDid you mean 'rte'"),
        ({"task": "rte", "format": "entailment"}, [{}] * 2, [0, 1], "Leave one out"),
        ({"task": "rte"}, [{"sentence1": "a"}] * 2, [0, 1], r"X\[0\]: no column 'sentence2'"),
        ({"task": SCORES}, [{"text": "a"}] * 2, [0, 1], "scores, not classes"),
        ({"learning_rate": -1}, TEXTS, LABELS, r"train\.learning_rate"),
        ({"layout": "sideways"}, TEXTS, LABELS, r"train\.layout"),
        ({"base": "/no/such/folder"}, TEXTS, LABELS, "no such folder"),
        ({"base": {"dropuot": 0}}, TEXTS, LABELS, "dropout"),
        ({"device": "tpu"}, TEXTS, LABELS, "no device 'tpu'"),
    ],
)
def test_a_mistake_is_one_clear_sentence(settings, X, y, said, make) -> None:
    with pytest.raises(ValueError, match=said) as error:
        make(**settings).fit(X, y)
    assert str(error.value).count("\n") <= 1 or "Unknown label type" in said


def test_a_label_that_the_task_does_not_know(make) -> None:
    rows = [{"sentence1": one, "sentence2": other} for one, other in PAIRS]
    for labels, said in [
        (["entailmnt", "not_entailment"], "y: unknown label 'entailmnt'\nDid you mean"),
        (["0", "entailment"], "two labels for one class"),
    ]:
        with pytest.raises(UsageError, match=said):
            make(task="rte").fit(rows[:2], labels)


def test_what_was_not_fitted_cannot_predict(make, fitted) -> None:
    for ask in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(make(), ask)(TEXTS)
    with pytest.raises(UsageError, match=r"X\[0\] is a pair, and `fit` had seen a text"):
        fitted.predict(PAIRS)
    with pytest.raises(UsageError, match=r"X\[1\]: empty text"):
        fitted.predict(["a", ""])


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


def test_a_fitted_one_can_be_pickled_and_copied(fitted) -> None:
    expected = fitted.predict_proba(TEXTS)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):  # noqa: S301
        np.testing.assert_array_equal(other.predict_proba(TEXTS), expected)
        assert other.get_params() == fitted.get_params()
    unfitted = pickle.loads(pickle.dumps(clone(fitted)))  # noqa: S301
    assert unfitted.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0


# -- what is left on the disk --------------------------------------------------------------------


def test_nothing_is_left_behind(make, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    model = pickle.loads(pickle.dumps(make().fit(TEXTS, LABELS)))  # noqa: S301
    assert model.score(TEXTS, LABELS) == 1.0
    with pytest.raises(UsageError):
        make(max_tokens=10_000).fit(TEXTS, LABELS)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_kept_where_it_is_wanted(make, tmp_path) -> None:
    run = tmp_path / "runs" / "weather"
    model = make(folder=run).fit(TEXTS, LABELS)
    predictor = finetune.load(run)
    found = predictor.predict([{"text": text} for text in TEXTS])
    np.testing.assert_array_equal([p.scores for p in found], model.predict_proba(TEXTS))
    assert [p.label for p in found] == LABELS
    assert predictor.evaluate("train")["accuracy"] == 1.0
    assert read_result(run)["updates"] == 12
    model.set_params(epochs=1).fit(TEXTS, LABELS)
    assert read_result(run)["updates"] == 3
    assert not (run / "checkpoints").exists()


def test_a_folder_of_something_else_is_refused(make, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="holds files that are no run's"):
        make(folder=tmp_path).fit(TEXTS, LABELS)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tex"] == ["thesis.tex"]


def test_a_recipe_of_ones_own_task_keeps_its_base(bases) -> None:
    recipe = Recipe(task=jobs.TASKS["classification"], base=BasePart(path=str(bases("gpt2"))))
    rows = [{"text": text} for text in TEXTS]
    model = finetune.Classifier(task=recipe, epochs=0.1, max_tokens=48)
    assert model.fit(rows, [0, 1] * 8).predict(rows).shape == (16,)
