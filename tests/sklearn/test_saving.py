"""What finetune.Classifier writes, and what its pickle contains."""

import copy
import pickle  # noqa: TID251  (scikit-learn users pickle estimators)

import numpy as np
import pytest
from sklearn.base import clone

import finetune
from finetune.checkpointing.run_folder import read_result
from task_formats import UsageError
from tests.sklearn.conftest import LABELS, TEXTS


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


def test_folder_with_other_files_is_refused(make, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="Directory is not empty"):
        make(folder=tmp_path).fit(TEXTS, LABELS)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
