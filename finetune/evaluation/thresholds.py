"""Thresholds for several labels at once: the probability from which each is predicted."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from task_formats import Label, MultiLabel, Task


def tune_thresholds(task: Task, logits: np.ndarray, labels: Sequence[Label]) -> Task:
    """Returns the task with the threshold of each label that gives it the best F1 on a split.

    Tasks of other kinds are returned as they are.

    Args:
        task: The task.
        logits: (N, C) logits.
        labels: N true labels; None where unlabelled.
    """
    if not isinstance(task.labels, MultiLabel):
        return task
    known = [n for n, label in enumerate(labels) if label is not None]
    gold = np.array([labels[n] for n in known]) == 1
    predictions = [task.labels.decode("", logits[n].tolist()) for n in known]
    probabilities = np.array([prediction.scores for prediction in predictions])
    thresholds = {
        name: best_f1_threshold(probabilities[:, k], gold[:, k])
        for k, name in enumerate(task.labels.names)
    }
    return replace(task, labels=task.labels.with_thresholds(thresholds))


def best_f1_threshold(probability: np.ndarray, gold: np.ndarray) -> float:
    """Returns the threshold with the highest F1; of equal ones that nearest to 0.5.

    A threshold lies in the middle between two neighbouring probabilities.

    Args:
        probability: (N,) predicted probabilities.
        gold: (N,) booleans.

    >>> best_f1_threshold(np.array([0.125, 0.25, 0.5]), np.array([False, True, True]))
    0.1875
    """
    if not gold.any():
        return 0.5
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    below = np.append(ranked[1:], 0.0)
    middle = (ranked + below) / 2
    thresholds = np.append(np.where(middle > below, middle, ranked), 0.5)
    # F1 = 2 TP / (predicted + true); only where the next probability is lower does a rank end.
    predicted = np.append(np.arange(1, len(ranked) + 1), (probability >= 0.5).sum())
    correct = np.append(np.cumsum(gold[order]), (gold & (probability >= 0.5)).sum())
    f1 = 2 * correct / (predicted + gold.sum())
    f1[:-2][ranked[1:] == ranked[:-1]] = -1
    best = thresholds[f1 >= f1.max() - 1e-12]
    return float(best[abs(best - 0.5).argmin()])
