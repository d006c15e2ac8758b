"""The threshold of a label is the one with the highest F1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.thresholds import best_f1_threshold, tune_thresholds
from task_formats import FORMATS, Classes, MultiLabel, Range, Task

PAIRS = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12)


def f1_at(threshold, probability, gold):
    predicted = probability >= threshold
    return 2 * (predicted & gold).sum() / max(predicted.sum() + gold.sum(), 1)


@given(PAIRS)
def test_no_other_threshold_has_a_higher_f1(pairs):
    probability, gold = (np.array(values) for values in zip(*pairs, strict=True))
    probability, gold = probability / 8, gold.astype(bool)
    found = best_f1_threshold(probability, gold)
    candidates = np.linspace(0, 1.01, 203)
    best = max(f1_at(value, probability, gold) for value in candidates)
    assert f1_at(found, probability, gold) == pytest.approx(best)
    assert 0 <= found <= 1
    if f1_at(0.5, probability, gold) == pytest.approx(best):
        assert found == 0.5


def test_only_several_labels_have_thresholds():
    names = Classes.of(["sun", "rain"])
    task = Task(FORMATS["classification"], {"text": "text"}, MultiLabel(names))
    logits = np.array([[2.0, -3.0], [1.0, -1.0], [-1.0, -2.0], [9.0, 9.0]], np.float32)
    # The last row has no label. Rain is found at a probability far below 0.5.
    tuned = tune_thresholds(task, logits, [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0), None])
    labels = [tuned.labels.decode("", row).label for row in logits.tolist()]
    assert labels == [("sun",), ("sun", "rain"), (), ("sun", "rain")]
    assert tuned.labels.thresholds[0] == 0.5
    for other in (names, Range(0, 1)):
        task = Task(FORMATS["classification"], {"text": "text"}, other)
        assert tune_thresholds(task, logits, [0, 1, 0, None]) is task
