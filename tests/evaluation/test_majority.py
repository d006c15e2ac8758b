"""The baseline without a model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.majority import majority_prediction, score_majority
from tests.support.jobs import TASKS

labels = st.lists(st.integers(0, 2), min_size=1, max_size=20)


@given(labels, labels)
def test_the_majority_class_is_right_as_often_as_it_occurs(train, gold) -> None:
    task = TASKS["classification"].build()
    answer = majority_prediction(task, train)
    index = task.labels.names.index(answer.label)
    assert answer.scores == tuple(train.count(k) / len(train) for k in range(3))
    assert train.count(index) == max(map(train.count, range(3)))
    accuracy = score_majority(task, train, gold)["accuracy"]
    assert accuracy == pytest.approx(gold.count(index) / len(gold))


def test_of_equally_frequent_labels_the_first_counts() -> None:
    task = TASKS["classification"].build()
    assert majority_prediction(task, [1, 0, 1, 0]).label == task.labels.names[0]


def test_the_mean_is_the_answer_for_scores() -> None:
    task = TASKS["score"].build()
    assert majority_prediction(task, [1.0, 2.0, 4.5]).label == 2.5
    found = score_majority(task, [1.0, 2.0], [0.5, 1.5, 3.5])
    assert found == {"mse": pytest.approx(5 / 3), "pearson": 0, "spearman": 0}
