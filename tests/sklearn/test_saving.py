"""What finetune.Classifier leaves on the disk, and what a pickle of it holds."""

import copy
import functools
import pickle  # noqa: TID251  (what scikit-learn's users do)

import numpy as np
import pytest
from sklearn.base import clone

import finetune
from finetune.checkpointing.run_folder import read_result
from task_formats import UsageError
from tests.support import weather
from tests.support.weather import LABELS, TEXTS


@pytest.fixture(scope="module")
def make(bases):
    """Makes a classifier over a tiny base, quick to fit."""
    return functools.partial(weather.classifier, bases("gpt2"))


@pytest.fixture(scope="module")
def fitted(make):
    return make().fit(TEXTS, LABELS)


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
