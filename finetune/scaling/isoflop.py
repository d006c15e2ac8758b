"""IsoFLOP profiles: the model size with the least loss at each compute budget.

Hoffmann et al. (2022), section 3.2: at one budget, the loss is a parabola of log N.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finetune.scaling.fitting import Interval, make_interval
from finetune.scaling.laws import Array
from finetune.scaling.points import Points

BUDGET_WIDTH = 1.1
"""Points whose C differ by less than this factor share a budget."""
_MIN_SIZES = 4


@dataclass(frozen=True)
class Profile:
    """The parabola of one budget, loss = a·x² + b·x + c with x = log(N).

    Attributes:
        compute: Geometric mean of the points' C in FLOPs.
        indices: Its points.
        curve: (a, b, c).
        refused: Why it has no minimum that can be trusted, or "".
    """

    compute: float
    indices: tuple[int, ...]
    curve: tuple[float, float, float]
    refused: str

    @property
    def log_parameters(self) -> float:
        """Log of N at the minimum."""
        return -self.curve[1] / (2 * self.curve[0])

    @property
    def loss(self) -> float:
        """Loss at the minimum."""
        return self.curve[2] - self.curve[1] ** 2 / (4 * self.curve[0])


@dataclass(frozen=True)
class IsoFlop:
    """Profiles of all budgets, and N = factor · C^exponent through their minima.

    `exponent` and `factor` are None where fewer than two budgets have a minimum.
    """

    profiles: tuple[Profile, ...]
    exponent: Interval | None
    factor: Interval | None


def fit_isoflop(points: Points, *, bootstrap: int = 400, seed: int = 0) -> IsoFlop | None:
    """Fits a parabola to every budget with enough points; None if there is no such budget."""
    if not {"N", "C"} <= points.values.keys():
        return None
    log_n, log_c = np.log(points.values["N"]), np.log(points.values["C"])
    profiles = tuple(_fit_budget(group, log_n, log_c, points.loss) for group in _budgets(log_c))
    profiles = tuple(
        profile
        for profile in profiles
        if len(np.unique(log_n[list(profile.indices)])) >= _MIN_SIZES
    )
    if not profiles:
        return None
    used = [profile for profile in profiles if not profile.refused]
    if len(used) < 2:
        return IsoFlop(profiles, None, None)
    x = np.log([profile.compute for profile in used])
    exponent, intercept = np.polyfit(x, [profile.log_parameters for profile in used], 1)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(bootstrap):
        minima = [_draw_minimum(profile, log_n, points.loss, generator) for profile in used]
        if all(minimum is not None for minimum in minima):
            draws.append(np.polyfit(x, np.array(minima, dtype=float), 1))
    spread = np.array(draws).reshape(-1, 2)
    freedom = sum(len(profile.indices) - 3 for profile in used)
    return IsoFlop(
        profiles,
        make_interval(float(exponent), spread[:, 0], freedom, positive=False),
        make_interval(float(np.exp(intercept)), np.exp(spread[:, 1]), freedom),
    )


def _budgets(log_c: Array) -> Iterator[Array]:
    """Groups of points whose C is within a factor of the smallest."""
    order = np.argsort(log_c, kind="stable")
    while len(order):
        near = log_c[order] <= log_c[order[0]] + np.log(BUDGET_WIDTH)
        if near.sum() >= _MIN_SIZES:
            yield order[near]
        order = order[~near]


def _fit_budget(group: Array, log_n: Array, log_c: Array, loss: Array) -> Profile:
    x, y = log_n[group], loss[group]
    centre = x.mean()
    a, b, c = np.polyfit(x - centre, y, 2) if np.ptp(x) > 0 else (0.0, 0.0, float(y.mean()))
    lowest = x[np.argmin(y)]
    minimum = centre - b / (2 * a) if a > 0 else np.nan
    if not a > 0:
        refused = "the curve has no minimum"
    elif not x.min() < minimum < x.max() or lowest in (x.min(), x.max()):
        side = "smaller" if minimum < centre else "larger"
        refused = f"the minimum is at the edge; add {side} models"
    else:
        refused = ""
    curve = (float(a), float(b - 2 * a * centre), float(c - b * centre + a * centre**2))
    return Profile(float(np.exp(log_c[group].mean())), tuple(map(int, group)), curve, refused)


def _draw_minimum(
    profile: Profile, log_n: Array, loss: Array, generator: np.random.Generator
) -> float | None:
    """Log N at the minimum with residuals drawn again; None if the curve has no minimum."""
    indices = list(profile.indices)
    x = log_n[indices]
    fitted = np.polyval(profile.curve, x)
    noise = (loss[indices] - fitted) * np.sqrt(len(x) / (len(x) - 3))
    centre = x.mean()
    a, b, _ = np.polyfit(x - centre, fitted + generator.choice(noise, len(noise)), 2)
    return float(centre - b / (2 * a)) if a > 0 else None
