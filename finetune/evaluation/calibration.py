"""Calibration of a finished run: the temperature by which its logits are divided."""

from collections.abc import Sequence

import numpy as np

from finetune.data.token_store import class_indices
from finetune.evaluation.statistics import Calibration, calibrate
from task_formats import Encoded


def calibrate_logits(logits: np.ndarray, examples: Sequence[Encoded]) -> Calibration | None:
    """Measures calibration and fits a temperature (Guo et al. 2017, section 4.2).

    Args:
        logits: (N, L) of C classes or K choices; -inf where a row has fewer choices.
        examples: N rows; those without a label are left out.

    Returns:
        None if no row has a label, or a logit is not finite.
    """
    from scipy.special import softmax

    known = [n for n, example in enumerate(examples) if example.label is not None]
    if not known or np.isnan(logits[known]).any():
        return None
    gold = class_indices(np.array([examples[n].label for n in known])).astype(np.int64)
    return calibrate(softmax(logits[known].astype(np.float64), axis=1), gold)
