"""A scikit-learn compatible regressor."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_consistent_length, column_or_1d

from finetune.sklearn.estimator import TextEstimator
from finetune.sklearn.samples import make_examples, parse_samples
from task_formats import Range, RowError, UsageError
from task_formats.task import LABEL


class Regressor(RegressorMixin, TextEstimator):
    """Fine-tunes a pretrained decoder to predict a number for texts, pairs of texts or rows.

    `X` is as for `Classifier`, and `y` holds N numbers of any size: they are standardized for
    training. `score` is R², as of every regressor of scikit-learn. A fitted regressor can be
    pickled and copied; the pickle contains the whole model.

    The parameters are those of `Classifier`, without `class_weights` and `label_smoothing`. With a
    `task`, which must have a range, every number in `y` is in it.

    Example:
        >>> regressor = Regressor(base="tiny", epochs=1)
        >>> regressor.fit(["a fine film", "a dull film"], [4.5, 1.0])  # doctest: +SKIP
    """

    def fit(self, X: Iterable[Any], y: Iterable[Any]) -> "Regressor":
        """Fine-tunes the base.

        Args:
            X: N samples.
            y: N numbers.

        Returns:
            The regressor itself.

        Raises:
            UsageError: A sample, number or parameter cannot be used. It is a ValueError.
        """
        kind, samples = parse_samples(X)
        scores = _parse_scores(y)
        check_consistent_length(samples, scores)
        low, high = min(scores), max(scores)
        if low == high:
            raise UsageError(f"y needs at least two different numbers, and all are {low:g}")
        recipe, reader = self._read_task(kind, range=(low, high), metrics=("mse",))
        if not isinstance(reader.labels, Range):
            raise UsageError("this task has classes, not scores", cure="Use finetune.Classifier.")
        for n, score in enumerate(scores):
            try:
                reader.labels.parse(score)
            except RowError as error:
                raise error.located(f"y[{n}]") from None
        columns = {LABEL: LABEL, **reader.columns}
        task = replace(reader, columns=columns, unlabelled=frozenset())
        examples = [
            replace(example, label=score)
            for example, score in zip(make_examples(reader, kind, samples), scores, strict=True)
        ]
        self._train(recipe, task, examples, reader, kind)
        return self

    def predict(self, X: Iterable[Any]) -> np.ndarray:
        """Predicts a number for every sample. It may lie outside the numbers that `fit` saw.

        Args:
            X: N samples of the kind seen by `fit`.

        Returns:
            (N,) numbers.
        """
        return np.array([prediction.label for prediction in self._predict_samples(X)], np.float64)


def _parse_scores(y: Any) -> list[float]:
    """N finite numbers."""
    scores = []
    for n, value in enumerate(column_or_1d(y, warn=True).tolist()):
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            cure = "Leave such samples out, or use finetune.Classifier for names of classes."
            raise UsageError(f"y[{n}] is {value!r}, not a finite number", cure=cure)
        scores.append(score)
    return scores
