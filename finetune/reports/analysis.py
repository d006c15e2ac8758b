"""The numbers of a report: for each run, for slices of rows, and for pairs of runs."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import bootstrap_interval
from finetune.evaluation.statistics import (
    Calibration,
    ClassScores,
    Difference,
    Interval,
    McNemarTest,
    ThresholdCurve,
    apply_temperature,
    average_scores,
    calibrate,
    count_confusions,
    expected_calibration_error,
    find_label_errors,
    mcnemar_test,
    mean_interval,
    paired_bootstrap,
    proportion_interval,
    reliability_bins,
    score_classes,
    threshold_curve,
)
from finetune.reports.evaluated_run import EvaluatedRun, Predictions, score_rows
from task_formats import Classes, MultiLabel, Task, UsageError

MAX_SLICED_CLASSES = 20
_SCORE_BINS = 5
_DRAWS, _DRAWS_OF_MANY_ROWS, _MANY_ROWS = 1000, 200, 10_000
"""Resamples of each bootstrap, and the number of rows above which there are fewer."""


class RunAnalysis(NamedTuple):
    """The numbers of one run; those that do not fit the kind of label are None."""

    scores: dict[str, Interval]
    confusions: NDArray[np.int64] | None
    """(C, C): row gold class, column predicted class."""
    classes: list[ClassScores] | None
    averages: list[ClassScores] | None
    """Means over the classes."""
    calibration: Calibration | None
    thresholds: ThresholdCurve | None
    """Of the positive class, for two classes; of all pairs of a row and a label, for several
    labels."""
    calibrated_error: float | None = None
    """Expected calibration error with the temperature that the run has."""


class Slice(NamedTuple):
    """A part of the rows, scored for each run."""

    group: str
    name: str
    rows: int
    scores: list[Interval]
    """Accuracy, or the mean absolute error of a score, for each run."""
    losses: list[float]


class Comparison(NamedTuple):
    """A second run against a first one, on the rows that both have."""

    first: str
    second: str
    rows: int
    both_correct: int | None
    """None for scores, as all fields of correct rows."""
    both_wrong: int | None
    mcnemar: McNemarTest | None
    differences: dict[str, Difference]
    scores: dict[str, tuple[float, float]]
    """Of both runs, on the rows that both have."""


class SuspiciousLabel(NamedTuple):
    """A row whose label is probably wrong."""

    row: int
    """Place among the matched rows."""
    label: int
    suggested: int
    probability: float
    """Of the own label."""
    suggested_probability: float
    name: str | None = None
    """Which of several labels; `label` and `suggested` then say whether it applies."""


def choose_draws(rows: int) -> int:
    """Returns the resamples of a bootstrap over N rows: 1000, or 200 above 10,000 rows."""
    return _DRAWS if rows <= _MANY_ROWS else _DRAWS_OF_MANY_ROWS


def analyze_run(run: EvaluatedRun, draws: int) -> RunAnalysis:
    """Computes the numbers of one run over all its labelled rows."""
    rows, labels = run.predictions, run.task.labels
    indices = np.arange(len(rows.ids))
    # Indices stand for predictions and labels alike: some metrics read probabilities.
    bounds = bootstrap_interval(lambda n, _: score_rows(run.task, rows, n), indices, indices, draws)
    scores = {name: Interval(run.scores[name], *bounds[name]) for name in bounds}
    scores["loss"] = mean_interval(rows.losses, draws)._replace(value=run.scores["loss"])
    if rows.probabilities is None:
        return RunAnalysis(scores, None, None, None, None, None)
    answers = rows.predicted, rows.gold, labels.names
    classes = score_classes(*answers), average_scores(*answers)
    if isinstance(labels, MultiLabel):
        applies = rows.gold.T.ravel()
        table = _as_two_classes(rows.probabilities.T.ravel())
        by_threshold = threshold_curve(table[:, 1], applies == 1)
        return RunAnalysis(scores, None, *classes, calibrate(table, applies), by_threshold)
    positive = run.task.positive_class
    has_curve = len(labels.names) == 2 and positive and not run.task.format.is_multiple_choice
    curve = None
    if has_curve:
        index = labels.names.index(str(positive))
        curve = threshold_curve(rows.probabilities[:, index], rows.gold == index)
    return RunAnalysis(
        scores,
        count_confusions(rows.predicted, rows.gold, len(labels.names)),
        *classes,
        calibrate(rows.probabilities, rows.gold),
        curve,
        None if run.temperature is None else _calibrated_error(rows, run.temperature),
    )


def _as_two_classes(probability: NDArray[Any]) -> NDArray[Any]:
    """(N, 2) probabilities of "does not apply" and "applies"."""
    return np.stack([1 - probability, probability], axis=1)


def _calibrated_error(rows: Predictions, temperature: float) -> float:
    assert rows.probabilities is not None
    table = apply_temperature(rows.probabilities, temperature)
    bins = reliability_bins(table.max(axis=1), table.argmax(axis=1) == rows.gold)
    return expected_calibration_error(bins)


def match_rows(runs: Sequence[EvaluatedRun]) -> list[Predictions]:
    """Returns the predictions of every run on the rows that all have, matched by their ids.

    Raises:
        UsageError: The runs have other labels, no row in common, or different labels for a row.
    """
    first = runs[0]
    for run in runs[1:]:
        check_same_labels(first.name, first.task, run.name, run.task)
    common = set.intersection(*(set(run.predictions.ids) for run in runs))
    ids = [name for name in first.predictions.ids if name in common]
    if not ids:
        what = f"{first.name} and {runs[-1].name} were evaluated on different rows"
        raise UsageError(what, cure="Name one file for all of them: --split FILE.")
    matched = []
    for run in runs:
        index = {name: n for n, name in enumerate(run.predictions.ids)}
        matched.append(run.predictions.select(np.array([index[name] for name in ids])))
        is_equal = (matched[-1].gold == matched[0].gold).reshape(len(ids), -1).all(axis=1)
        different = np.flatnonzero(~is_equal)
        if len(different):
            what = f"row {ids[different[0]]} has one label in {first.name}, another in {run.name}"
            raise UsageError(what, cure="Name one file for all runs: --split FILE.")
    return matched


def check_same_labels(name: str, task: Task, other_name: str, other: Task) -> None:
    """Raises UsageError if the tasks of two runs have other labels or metrics."""
    one, two = task.labels, other.labels
    if (one.kind, one.names, task.metrics) != (two.kind, two.names, other.metrics):
        what = f"{name} and {other_name} have different labels or metrics"
        raise UsageError(what, cure="Compare runs of the same task.")


def compare_runs(
    first: EvaluatedRun, second: EvaluatedRun, rows: Sequence[Predictions], draws: int
) -> Comparison:
    """Compares two runs on matched rows: McNemar's test for classes, and a paired bootstrap."""
    one, two = rows
    scores = partial(score_rows, first.task, one), partial(score_rows, second.task, two)
    names, count = (first.name, second.name), len(one.ids)
    differences = paired_bootstrap(*scores, count, draws)
    everything = np.arange(count)
    pairs = {
        name: (scores[0](everything)[name], scores[1](everything)[name]) for name in differences
    }
    if one.probabilities is None:
        return Comparison(*names, count, None, None, None, differences, pairs)
    both, neither = int((one.correct & two.correct).sum()), int((~one.correct & ~two.correct).sum())
    test = mcnemar_test(one.correct, two.correct)
    return Comparison(*names, count, both, neither, test, differences, pairs)


def slice_rows(run: EvaluatedRun, matched: Sequence[Predictions]) -> list[Slice]:
    """Scores parts of the matched rows: by length, truncation and label.

    Lengths and truncation are those of `run`, the first one.
    """
    rows = matched[0]
    masks: list[tuple[str, str, NDArray[np.bool_]]] = []
    edges = np.unique(np.quantile(rows.tokens, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    for n, high in enumerate(edges[1:].tolist() or edges.tolist()):
        low = int(edges[n]) + (n > 0)
        name = f"{low:,} to {high:,} tokens" if low < high else f"{low:,} tokens"
        masks.append(("length", name, (rows.tokens >= low) & (rows.tokens <= high)))
    truncated = rows.truncated_tokens > 0
    masks += [("truncation", "whole", ~truncated), ("truncation", "truncated", truncated)]
    masks += [("label", name, mask) for name, mask in _label_masks(run, rows)]
    return [
        Slice(
            group,
            name,
            int(mask.sum()),
            [_slice_value(part, mask) for part in matched],
            [float(part.losses[mask].mean()) for part in matched],
        )
        for group, name, mask in masks
        if mask.any()
    ]


def _label_masks(run: EvaluatedRun, rows: Predictions) -> list[tuple[str, NDArray[np.bool_]]]:
    labels = run.task.labels
    names = labels.names if len(labels.names) <= MAX_SLICED_CLASSES else ()
    if isinstance(labels, Classes):
        return [(name, rows.gold == index) for index, name in enumerate(names)]
    if isinstance(labels, MultiLabel):
        has_none = ("without a label", ~rows.gold.any(axis=1))
        return [*((name, rows.gold[:, k] == 1) for k, name in enumerate(names)), has_none]
    edges = np.linspace(labels.low, labels.high, _SCORE_BINS + 1)
    bins = np.clip(np.digitize(rows.gold, edges) - 1, 0, _SCORE_BINS - 1)
    return [(f"{edges[k]:g} to {edges[k + 1]:g}", bins == k) for k in range(_SCORE_BINS)]


def _slice_value(rows: Predictions, mask: NDArray[np.bool_]) -> Interval:
    if rows.probabilities is not None:
        return proportion_interval(int(rows.correct[mask].sum()), int(mask.sum()))
    return mean_interval(np.abs(rows.predicted - rows.gold)[mask])


def find_worst_rows(matched: Sequence[Predictions], limit: int) -> list[int]:
    """Returns the rows that some run has wrong, by decreasing mean loss over the runs."""
    losses: NDArray[Any] = np.mean([rows.losses for rows in matched], axis=0)
    order = np.argsort(-losses, kind="stable")
    wrong = np.any([~rows.correct for rows in matched], axis=0)
    return [int(n) for n in order if wrong[n]][:limit]


def find_suspicious_labels(
    matched: Sequence[Predictions], names: Sequence[str] = ()
) -> list[SuspiciousLabel]:
    """Returns rows whose label is probably wrong, by the mean probabilities of the runs.

    Args:
        matched: The same rows for every run.
        names: Names of several labels, each of which is examined by itself.
    """
    tables = [rows.probabilities for rows in matched if rows.probabilities is not None]
    if not tables:
        return []
    table: NDArray[Any] = np.mean(tables, axis=0)
    gold = matched[0].gold
    if gold.ndim == 1:
        return _find_suspicious(table, gold)
    found = [
        item._replace(name=name)
        for k, name in enumerate(names)
        for item in _find_suspicious(_as_two_classes(table[:, k]), gold[:, k])
    ]
    return sorted(found, key=lambda item: item.probability)


def _find_suspicious(table: NDArray[Any], gold: NDArray[Any]) -> list[SuspiciousLabel]:
    best = table.argmax(axis=1)
    return [
        SuspiciousLabel(
            n, int(gold[n]), int(best[n]), float(table[n, gold[n]]), float(table[n, best[n]])
        )
        for n in find_label_errors(table, gold).tolist()
    ]
