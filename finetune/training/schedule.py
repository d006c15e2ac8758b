"""The learning rate as a value of the step: pure numbers."""

import math
from collections.abc import Callable
from typing import Literal

Decay = Literal["linear", "cosine"]


def rate_factor(update: int, updates: int, warmup: float, decay: Decay = "linear") -> float:
    """What the peak rate is multiplied by at update t = 1, 2, ..., T (the original's schedule).

    With x = t / T: (x / warmup if x ≤ warmup else 1) · (1 − x), or for "cosine" (pre-training,
    section 4.1) a climb to the peak and then half a cosine down to 0.

    >>> round(rate_factor(5, 10, warmup=0.002), 9)
    0.5
    """
    x = update / updates
    climb = x / warmup if x <= warmup else 1.0
    if decay == "linear":
        return climb * (1 - x)
    return climb if x <= warmup else (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def plan_rates(updates: int, warmup: float, decay: Decay = "linear") -> Callable[[int], float]:
    """`rate_factor` with everything but the update filled in."""
    return lambda update: rate_factor(update, updates, warmup, decay)
