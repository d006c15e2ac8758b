"""How sure a score is, from the rows it was found on."""

from collections.abc import Callable

import numpy as np

Judge = Callable[[np.ndarray, np.ndarray], dict[str, float]]
"""(N,) predictions and (N,) truths to a number per metric."""


def bootstrap_interval(
    judge: Judge, predicted: np.ndarray, gold: np.ndarray, draws: int = 200
) -> dict[str, tuple[float, float]]:
    """The middle 95 % of each metric over as many rows drawn anew, `draws` times; seeded."""
    random = np.random.default_rng(0)
    rows = random.integers(0, len(gold), (draws, len(gold)))
    found = [judge(predicted[row], gold[row]) for row in rows]
    tables = {name: [scores[name] for scores in found] for name in found[0]}
    bounds = {name: np.quantile(values, [0.025, 0.975]) for name, values in tables.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
