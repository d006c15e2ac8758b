"""The numbers of a report: of slices, of worst rows, and of pairs of runs."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from finetune.evaluation.statistics import find_label_errors, mcnemar_test
from finetune.reports.analysis import (
    analyze_run,
    compare_runs,
    find_suspicious_labels,
    find_worst_rows,
    match_rows,
    slice_rows,
)
from task_formats import UsageError
from tests.support.evaluated_runs import make_run


def restrict(run, rows):
    return replace(run, predictions=run.predictions.select(np.array(rows)))


@pytest.mark.parametrize(
    "kind", ["classification", "entailment", "score", "multiple_choice", "multi_label"]
)
def test_the_scores_are_those_of_evaluation(kind, tmp_path):
    run = make_run(tmp_path, kind)
    analysis = analyze_run(run, draws=50)
    assert {name: interval.value for name, interval in analysis.scores.items()} == run.scores
    for interval in analysis.scores.values():
        assert interval.low <= interval.value <= interval.high
    assert (analysis.calibration is None) == (kind == "score")
    assert (analysis.thresholds is not None) == (kind in ("entailment", "multi_label"))


def test_metrics_of_probabilities_are_those_of_scikit_learn(tmp_path):
    run = make_run(tmp_path, "entailment", 200, metrics=("roc_auc", "log_loss", "accuracy"))
    rows = run.predictions
    auc = roc_auc_score(rows.gold, rows.probabilities[:, 1])
    assert run.scores["roc_auc"] == pytest.approx(auc)
    assert run.scores["log_loss"] == pytest.approx(run.scores["loss"])
    interval = analyze_run(run, draws=50).scores["roc_auc"]
    assert interval.low < auc < interval.high


def test_the_threshold_of_a_half_gives_the_scores_of_evaluation(tmp_path):
    run = make_run(tmp_path, "entailment", 200)
    curve = analyze_run(run, draws=1).thresholds
    assert curve.threshold[50] == 0.5
    assert curve.accuracy[50] == run.scores["accuracy"]
    assert curve.f1[50] == pytest.approx(run.scores["f1"])


@pytest.mark.parametrize("kind", ["classification", "score"])
def test_the_slices_of_a_group_hold_every_row_once(kind, tmp_path):
    run = make_run(tmp_path, kind, 100)
    slices = slice_rows(run, [run.predictions])
    assert {part.group for part in slices} == {"length", "truncation", "label"}
    for group in ("length", "truncation", "label"):
        parts = [part for part in slices if part.group == group]
        assert sum(part.rows for part in parts) == 100
        weighted = [part.rows / 100 * part.losses[0] for part in parts]
        assert sum(weighted) == pytest.approx(run.scores["loss"])
    [truncated] = [part for part in slices if part.name == "truncated"]
    assert truncated.rows == (run.predictions.truncated_tokens > 0).sum()


def test_rows_of_equal_length_are_one_slice(tmp_path):
    run = make_run(tmp_path, "classification")
    same = replace(run.predictions, tokens=np.full(30, 7))
    [length] = [part for part in slice_rows(run, [same]) if part.group == "length"]
    assert (length.name, length.rows) == ("7 tokens", 30)


def test_worst_rows_are_wrong_and_by_decreasing_loss(tmp_path):
    run = make_run(tmp_path, "classification")
    rows = run.predictions
    worst = find_worst_rows([rows], 5)
    assert len(worst) == 5
    assert not rows.correct[worst].any()
    assert rows.losses[worst].tolist() == sorted(rows.losses[~rows.correct], reverse=True)[:5]


def test_runs_are_compared_on_rows_matched_by_id(tmp_path):
    one = make_run(tmp_path, "classification", name="one")
    other = make_run(tmp_path, "classification", name="other", seed=1)
    # The same rows in another order, and with one missing on each side.
    first, second = restrict(one, range(29)), restrict(other, [*range(29, 0, -1)])
    matched = match_rows([first, second])
    assert matched[0].ids == matched[1].ids == one.predictions.ids[1:29]
    assert (matched[0].gold == matched[1].gold).all()
    comparison = compare_runs(first, second, matched, draws=20)
    expected = mcnemar_test(one.predictions.correct[1:29], other.predictions.correct[1:29])
    assert comparison.mcnemar == expected
    counts = comparison.both_correct + comparison.both_wrong + expected.only_first
    assert counts + expected.only_second == comparison.rows == 28
    accuracies = [rows.correct.mean() for rows in matched]
    assert comparison.differences["accuracy"].value == pytest.approx(accuracies[1] - accuracies[0])


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    run = make_run(tmp_path / "a", "classification")
    entailment = make_run(tmp_path / "b", "entailment", name="other")
    with pytest.raises(UsageError, match="different labels or metrics"):
        match_rows([run, entailment])
    renamed = replace(run.predictions, ids=tuple(f"x/{n}" for n in range(30)))
    with pytest.raises(UsageError, match="different rows"):
        match_rows([run, replace(run, predictions=renamed)])
    changed = replace(run.predictions, gold=(run.predictions.gold + 1) % 3)
    with pytest.raises(UsageError, match=r"row held-out.jsonl/0 has one label"):
        match_rows([run, replace(run, predictions=changed)])


def test_suspicious_labels_are_those_of_the_mean_probabilities(tmp_path):
    runs = [make_run(tmp_path, "classification", 200, seed=seed) for seed in (0, 1)]
    matched = match_rows(runs)
    mean = (matched[0].probabilities + matched[1].probabilities) / 2
    found = find_suspicious_labels(matched)
    assert found
    for item in found:
        assert item.suggested == mean[item.row].argmax() != item.label == matched[0].gold[item.row]
        assert item.probability == mean[item.row, item.label] < item.suggested_probability
    assert [item.probability for item in found] == sorted(item.probability for item in found)
    assert find_suspicious_labels([make_run(tmp_path / "s", "score").predictions]) == []


def test_each_of_several_labels_is_examined_by_itself(tmp_path):
    run = make_run(tmp_path, "multi_label", 200)
    rows, names = run.predictions, run.task.labels.names
    found = find_suspicious_labels([rows], names)
    assert [item.probability for item in found] == sorted(item.probability for item in found)
    for k, name in enumerate(names):
        table = np.stack([1 - rows.probabilities[:, k], rows.probabilities[:, k]], axis=1)
        own = {item.row for item in found if item.name == name}
        assert own == set(find_label_errors(table, rows.gold[:, k]).tolist()) != set()
    flipped = replace(rows, gold=1 - rows.gold)
    changed = {(item.row, item.name) for item in find_suspicious_labels([flipped], names)}
    assert not changed & {(item.row, item.name) for item in found}


def test_of_several_labels_pairs_with_a_row_count_for_threshold_and_calibration(tmp_path):
    run = make_run(tmp_path, "multi_label", 200)
    analysis, rows = analyze_run(run, draws=1), run.predictions
    assert analysis.thresholds.f1[50] == pytest.approx(run.scores["micro_f1"])
    assert analysis.thresholds.accuracy[50] == (rows.gold == rows.predicted).mean()
    assert sum(group.rows for group in analysis.calibration.bins) == rows.gold.size
    parts = [part for part in slice_rows(run, [rows]) if part.group == "label"]
    assert [part.rows for part in parts[:4]] == rows.gold.sum(0).tolist()
    assert (parts[4].name, parts[4].rows) == ("without a label", (rows.gold.sum(1) == 0).sum())
