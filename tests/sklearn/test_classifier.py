"""finetune.Classifier learns, predicts, works with scikit-learn's tools and can be pickled."""

import copy
import pickle  # noqa: TID251  (scikit-learn users pickle estimators)
from collections import OrderedDict

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

import finetune
from finetune.checkpointing.run_folder import read_result
from task_formats import FORMATS, Classes, Task, UsageError
from tests.sklearn.conftest import LABELS, PAIRS, TEXTS
from tests.support import jobs

# -- texts, pairs and labels -----------------------------------------------------------------------


def test_texts_are_learned_scored_and_given_probabilities(fitted):
    assert fitted.classes_.tolist() == ["dry", "wet"]
    assert fitted.predict(TEXTS).tolist() == LABELS
    assert fitted.score(TEXTS, LABELS) == 1.0
    assert fitted.score(TEXTS[:4], ["wet", "dry", "wet", "unknown"]) == 0.5
    assert fitted.score(TEXTS[:2], ["wet", "dry"], sample_weight=[3, 1]) == 0.75
    probabilities = fitted.predict_proba(TEXTS)
    assert probabilities.shape == (16, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (fitted.classes_[probabilities.argmax(axis=1)] == LABELS).all()


@pytest.mark.parametrize("format", [None, "entailment", "similarity"])
def test_only_similarity_ignores_the_order_of_pairs(format, make):
    model = make(format=format).fit(PAIRS, LABELS)
    assert model.score(np.array(PAIRS), LABELS) == 1.0
    mirrored = model.predict_proba([pair[::-1] for pair in PAIRS])
    same = np.allclose(mirrored, model.predict_proba(PAIRS), atol=1e-6)
    assert same == (format == "similarity")


@pytest.mark.parametrize(
    ("dry", "wet", "dtype"),
    [
        (7, -1, np.int8),
        (False, True, np.bool_),
        (1.0, 2.0, np.float64),
        (" a", "a ", np.str_),
        ("b", "a", object),
    ],
)
def test_labels_keep_their_values_and_type(dry, wet, dtype, make):
    labels = np.array([wet if label == "wet" else dry for label in LABELS], dtype)
    model = make().fit(TEXTS, labels)
    assert model.classes_.tolist() == sorted([dry, wet])
    assert model.classes_.dtype == model.predict(TEXTS).dtype == labels.dtype
    assert model.fit(TEXTS, labels.tolist()).predict(TEXTS).tolist() == labels.tolist()


def test_a_class_of_more_weight_is_predicted_more_often(make):
    labels = [9 if label == "wet" else 4 for label in LABELS]
    weights = [{4: 1.0}, {4: 1.0, 9: 50.0}]
    models = [make(class_weights=table, epochs=1).fit(TEXTS, labels) for table in weights]
    plain, weighted = (model.predict_proba(TEXTS)[:, 1].mean() for model in models)
    assert weighted > plain


def test_a_column_of_three_classes(make):
    labels = np.array([["b"], ["a"], ["c"], ["a"]] * 4)
    with pytest.warns(UserWarning, match="column-vector"):
        model = make(epochs=0.5).fit(TEXTS, labels)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.predict_proba(TEXTS).shape == (16, 3)


# -- several labels at once ------------------------------------------------------------------------

# It rains in the first texts; a horse is in some of the others.
TABLE = np.array([["ain" in text, "horse" in text, "z" in text] for text in TEXTS], dtype=np.int8)


def test_several_labels_are_a_matrix_of_zeros_and_ones(make):
    model = make(epochs=12).fit(TEXTS, TABLE)
    assert [column.tolist() for column in model.classes_] == [[0, 1]] * 3
    predicted, columns = model.predict(TEXTS), model.predict_proba(TEXTS)
    assert (predicted.shape, predicted.dtype) == (TABLE.shape, TABLE.dtype)
    np.testing.assert_allclose([column.sum(axis=1) for column in columns], 1)
    probabilities = np.stack(columns, axis=1)[:, :, 1]
    assert ((probabilities >= 0.5) == predicted).all()
    assert model.score(TEXTS, TABLE) == accuracy_score(TABLE, predicted) > 0.8
    assert roc_auc_score(TABLE[:, :2], probabilities[:, :2]) > 0.9
    assert not probabilities[:, 2].max() > 0.5
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(again.predict_proba(TEXTS), columns)
    with pytest.raises(UsageError, match="y holds lists of labels"):
        model.fit(TEXTS[:2], [["rain"], ["rain", "horse"]])


def test_scikit_learn_scores_several_labels(make):
    scoring = {"f1": "f1_micro", "auc": "roc_auc"}
    table = TABLE[:, :2].astype(bool)
    # With two labels, which scikit-learn could take for two classes.
    scores = cross_validate(make(epochs=8), TEXTS, table, cv=KFold(2), scoring=scoring)
    assert (scores["test_f1"] > 0.6).all()
    assert (scores["test_auc"] > 0.6).all()


def test_columns_of_a_frame_are_labels_by_name(make, tmp_path, bases):
    pandas = pytest.importorskip("pandas")
    recipe = jobs.recipe("multi_label", bases("gpt2"), tmp_path)
    rows = pandas.DataFrame({"text": TEXTS})
    table = pandas.DataFrame({"wind": TABLE[:, 2], "snow": 0, "rain": TABLE[:, 0], "sun": 0})
    model = make(task=recipe, folder=tmp_path / "run", epochs=12).fit(rows, table)
    assert model.score(rows, table) > 0.8
    # The run has the labels in the order of the task.
    [first, *_] = finetune.load(tmp_path / "run").predict([{"text": TEXTS[0]}])
    names = ("sun", "rain", "wind", "snow")
    by_name = dict(zip(names, first.scores, strict=True))
    expected = [by_name[name] for name in table.columns]
    found = [column[0, 1] for column in model.predict_proba(rows)]
    assert found == pytest.approx(expected, abs=1e-6)
    model.fit(rows, table[["sun", "rain", "wind", "snow"]].to_numpy())
    found = [column[0, 1] for column in model.predict_proba(rows)]
    assert found == pytest.approx(first.scores, abs=1e-6)
    with pytest.raises(UsageError, match="this task has several labels per row, and y one"):
        model.fit(rows, LABELS)
    with pytest.raises(UsageError, match="y has 3 columns, and the task 4 labels"):
        model.fit(rows, TABLE)


# -- rows of a task --------------------------------------------------------------------------------


def test_rows_of_a_shipped_recipe_have_labels_by_value_or_by_name(make):
    rows = [{"sentence1": first, "sentence2": second, "idx": 7} for first, second in PAIRS]
    for names in ([0, 1], ["entailment", "not_entailment"]):
        labels = [names[label == "dry"] for label in LABELS]
        assert make(task="rte").fit(rows, labels).predict(rows).tolist() == labels


def test_a_frame_is_rows_and_a_series_is_texts(make):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS})
    rows = make(format="classification").fit(frame[["text"]], frame["label"])
    assert rows.predict(frame).tolist() == LABELS
    texts = make().fit(frame["text"], frame["label"])
    np.testing.assert_array_equal(texts.predict_proba(frame.text), rows.predict_proba(frame))


def test_a_task_may_read_rows_with_code_which_runs_once_for_a_row(make):
    read_rows = []

    def read(row):
        read_rows.append(row)
        return {"said": " ".join(row["words"]), "label": "unknown"}

    columns = {"text": "said", "label": "label"}
    task = Task(FORMATS["classification"], columns, Classes.of(["wet", "dry"]), convert_row=read)
    rows = [{"words": np.array(text.split()), "stamp": object()} for text in TEXTS]
    model = make(task=task).fit(rows, LABELS)
    assert read_rows == rows
    texts = make().fit(TEXTS, LABELS)
    np.testing.assert_array_equal(model.predict_proba(rows), texts.predict_proba(TEXTS))
    assert read_rows == rows * 2


def test_choices_of_a_task(make, tmp_path, bases):
    recipe = jobs.recipe("multiple_choice", bases("gpt2"), tmp_path)
    rows = [
        {"story": "Look.", "question": "Where?", "choices": ["the horse", "the rain"]},
        {"story": "Look.", "question": "Where?", "choices": ["the rain", "the horse", "x"]},
    ] * 8
    labels = [0, 1] * 8
    model = make(task=recipe).fit(rows, labels)
    assert model.predict(rows).tolist() == labels
    # The third choice never occurs in y, so its probability is shared by the others.
    np.testing.assert_allclose(model.predict_proba(rows).sum(axis=1), np.ones(16))
    with pytest.raises(UsageError, match=r"X\[0\]: the label is choice 3 of 2"):
        model.fit(rows[:2], [2, 0])


def test_fewer_classes_than_the_task_has(make, tmp_path, bases):
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path)
    rows, labels = [{"text": text} for text in TEXTS], [2 if x == "wet" else 0 for x in LABELS]
    model = make(task=recipe).fit(rows, labels)
    assert model.classes_.tolist() == [0, 2]
    assert model.predict(rows).tolist() == labels


def test_parameters_override_the_recipe(tmp_path, bases):
    recipe = jobs.recipe("classification", bases("gpt2"), tmp_path, warmup=0.25)
    rows, labels = [{"text": text} for text in TEXTS], [2 if x == "wet" else 0 for x in LABELS]
    model = finetune.Classifier(task=recipe, epochs=np.float64(1.0), folder=tmp_path / "run")
    model.set_params(weight_decay=0.5, random_state=np.int64(3)).fit(rows, labels)
    saved = finetune.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (saved.train.warmup, saved.train.batch_size, saved.train.epochs) == (0.25, 8, 1)
    assert (saved.train.weight_decay, saved.train.seed) == (0.5, 3)
    assert saved.base == recipe.base
    model.set_params(base=bases("llama")).fit(rows, labels)
    saved = finetune.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert saved.base == recipe.base.model_copy(update={"path": str(bases("llama"))})


# -- the estimator interface -----------------------------------------------------------------------


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
def test_checks_of_scikit_learn_that_need_no_numeric_features(check, make):
    getattr(checks, check)("Classifier", make())


def test_fit_returns_the_classifier_and_keeps_its_parameters(make):
    model = make(random_state=5)
    assert is_classifier(model)
    before = copy.deepcopy(model.get_params())
    assert model.fit(TEXTS, LABELS) is model
    assert model.get_params() == clone(model).get_params() == before
    with pytest.raises(NotFittedError):
        clone(model).predict(TEXTS)


def test_the_random_state_decides_the_result(make):
    def fit(state):
        return make(epochs=0.5, random_state=state).fit(TEXTS, LABELS).predict_proba(TEXTS)

    np.testing.assert_array_equal(fit(None), fit(None))
    np.testing.assert_array_equal(fit(7), fit(7))
    assert (fit(7) != fit(8)).any()
    generator = np.random.RandomState(0)
    assert (fit(generator) != fit(generator)).any()


def test_pipeline(make):
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    steps = Pipeline([("lower", lower), ("model", make())])
    assert steps.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0
    assert steps.set_params(model__epochs=1).get_params()["model__epochs"] == 1


def test_cross_validation_and_grid_search(make):
    assert cross_val_score(make(), TEXTS, LABELS, cv=2).tolist() == [1.0, 1.0]
    rows = [OrderedDict(text=text) for text in TEXTS]
    grid = {"learning_rate": np.array([1e-12, 1e-2])}
    search = GridSearchCV(make(format="classification"), grid, cv=2).fit(rows, LABELS)
    assert search.best_params_ == {"learning_rate": 1e-2}
    assert search.predict(rows).tolist() == LABELS
    scored = cross_validate(make(), TEXTS, LABELS, cv=2, scoring="roc_auc", error_score="raise")
    assert scored["test_score"].tolist() == [1.0, 1.0]


# -- pickles and folders ---------------------------------------------------------------------------


def test_a_fitted_classifier_can_be_pickled_and_copied(fitted):
    expected = fitted.predict_proba(TEXTS)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):  # noqa: S301
        np.testing.assert_array_equal(other.predict_proba(TEXTS), expected)
        assert other.get_params() == fitted.get_params()
    unfitted = pickle.loads(pickle.dumps(clone(fitted)))  # noqa: S301
    assert unfitted.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1.0


def test_no_temporary_file_is_left(make, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GPTFT_CACHE", str(tmp_path / "cache"))
    model = pickle.loads(pickle.dumps(make().fit(TEXTS, LABELS)))  # noqa: S301
    assert model.score(TEXTS, LABELS) == 1.0
    with pytest.raises(UsageError):
        make(max_tokens=10_000).fit(TEXTS, LABELS)
    assert list(tmp_path.iterdir()) == []


def test_folder_keeps_the_run_and_replaces_an_earlier_one(make, tmp_path):
    run = tmp_path / "runs" / "weather"
    model = make(folder=run).fit(TEXTS, LABELS)
    predictions = finetune.load(run).predict([{"text": text} for text in TEXTS])
    np.testing.assert_array_equal([p.scores for p in predictions], model.predict_proba(TEXTS))
    assert [p.label for p in predictions] == LABELS
    assert read_result(run)["updates"] == 12
    model.set_params(epochs=1).fit(TEXTS, LABELS)
    assert read_result(run)["updates"] == 3
    assert not (run / "checkpoints").exists()
