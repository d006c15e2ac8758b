"""Fits of scaling laws: log-Huber loss, bootstrap intervals, and how well a fit is determined.

The objective is that of Hoffmann et al. (2022), section 3.3: the sum over points of the Huber loss,
delta 1e-3, of the difference of log losses.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import huber
from scipy.stats import t as student_t

from finetune.scaling.laws import LAWS, Array, Law
from task_formats import UsageError

DELTA = 1e-3
"""Residuals of the log loss beyond this count linearly."""
CONFIDENCE = 0.95
_LOWEST, _HIGHEST = -80.0, 80.0
"""Bounds of log constants, in units of the points' geometric means."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: Name of the law in `LAWS`.
        constants: Every constant with its interval.
        draws: (bootstrap draws, P) constants of every draw, in the order of `constants`.
        points: Number of points.
        objective: Sum of the Huber losses.
        residuals: Log measured loss minus log fitted loss of every point, in the file's order.
        condition: Condition number of the derivatives, with columns of length 1. Above 100 the
            points hardly tell some constants apart.
    """

    law: str
    constants: dict[str, Interval]
    draws: tuple[tuple[float, ...], ...]
    points: int
    objective: float
    residuals: tuple[float, ...]
    condition: float

    @property
    def values(self) -> dict[str, float]:
        """Constants without intervals."""
        return {name: interval.value for name, interval in self.constants.items()}

    @property
    def rms(self) -> float:
        """Root mean square of the residuals, about the relative error of the loss."""
        return float(np.sqrt(np.mean(np.square(self.residuals))))

    def interval(self, function: Callable[[dict[str, float]], float]) -> Interval:
        """A function of the constants with its interval over the bootstrap draws."""
        value = function(self.values)
        draws = [function(dict(zip(self.constants, row, strict=True))) for row in self.draws]
        freedom = self.points - len(self.constants)
        return make_interval(value, np.array(draws), freedom)


def make_interval(value: float, draws: Array, freedom: int, *, positive: bool = True) -> Interval:
    """The interval of a value: quantiles of the draws, widened for few points.

    Quantiles are too narrow by the ratio of Student's t to the normal distribution, as a standard
    error with few degrees of freedom is. Positive values are widened on a logarithmic scale.
    """
    if len(draws) == 0 or freedom < 1:
        return Interval(value, float("nan"), float("nan"))
    tail = (1 - CONFIDENCE) / 2
    widening = student_t.ppf(1 - tail, freedom) / student_t.ppf(1 - tail, 1e9)
    ends = np.quantile(draws, [tail, 1 - tail])
    ends = value * (ends / value) ** widening if positive else value + widening * (ends - value)
    return Interval(value, float(min(ends[0], value)), float(max(ends[1], value)))


def fit_law(law: Law, values: Array, loss: Array, *, bootstrap: int = 400, seed: int = 0) -> Fit:
    """Fits a law to measured losses.

    Args:
        law: The form.
        values: (R, V) values of the law's variables.
        loss: (R,) losses in nats per token.
        bootstrap: Number of bootstrap draws for the intervals; 0 leaves them out.
        seed: Seed of the draws.

    Raises:
        UsageError: There are fewer points than constants, or a variable has one value only.
    """
    size = len(law.constants)
    if len(loss) < size:
        raise UsageError(
            f"{law.formula} has {size} constants, but there are {len(loss)} points",
            cure="Measure more points.",
        )
    for variable, column in zip(law.variables, values.T, strict=True):
        if np.ptp(np.log(column)) < 1e-9:
            raise UsageError(
                f"{law.formula} cannot be fitted: {variable} is {column[0]:g} in all points",
                cure=f"Measure points with other values of {variable}.",
            )
    logs, log_loss = np.log(values), np.log(loss)
    origin = logs.mean(axis=0)
    logs = logs - origin
    theta = min(
        (_refine(law, start, logs, log_loss) for start in law.search(logs, log_loss)),
        key=lambda found: _objective(found, law, logs, log_loss),
    )
    residuals = log_loss - law.log_loss(theta, logs)
    jacobian = law.jacobian(theta, logs)
    lengths = np.linalg.norm(jacobian, axis=0)
    condition = np.linalg.cond(jacobian / lengths) if lengths.min() > 0 else np.inf
    draws = _draw(law, theta, logs, residuals, bootstrap, seed)
    moved = np.array([law.move(draw, origin) for draw in draws]).reshape(-1, size)
    constants = np.exp(law.move(theta, origin))
    return Fit(
        law.name,
        {
            name: make_interval(float(value), np.exp(column), len(loss) - size)
            for name, value, column in zip(law.constants, constants, moved.T, strict=True)
        },
        tuple(tuple(map(float, row)) for row in np.exp(moved)),
        len(loss),
        _objective(theta, law, logs, log_loss),
        tuple(map(float, residuals)),
        float(condition),
    )


def get_law(fit: Fit) -> Law:
    """The form that was fitted."""
    return LAWS[fit.law]


def _objective(theta: Array, law: Law, logs: Array, log_loss: Array) -> float:
    return float(huber(DELTA, log_loss - law.log_loss(theta, logs)).sum())


def _refine(law: Law, start: Array, logs: Array, log_loss: Array) -> Array:
    """Minimises the objective: BFGS, then Gauss-Newton steps, which end at the last digits."""

    def value_and_gradient(theta: Array) -> tuple[float, Array]:
        theta = np.clip(theta, _LOWEST, _HIGHEST)
        residuals = law.log_loss(theta, logs) - log_loss
        gradient = np.clip(residuals, -DELTA, DELTA) @ law.jacobian(theta, logs)
        # In units of delta, so that BFGS does not take small gradients for zero.
        return huber(DELTA, residuals).sum() / DELTA, gradient / DELTA

    rough = minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    rough = np.clip(rough.x, _LOWEST + 1, _HIGHEST - 1)
    return _polish(law, rough, logs, log_loss)


def _polish(law: Law, start: Array, logs: Array, log_loss: Array) -> Array:
    done = least_squares(
        lambda theta: law.log_loss(theta, logs) - log_loss,
        start,
        lambda theta: law.jacobian(theta, logs),
        bounds=(_LOWEST, _HIGHEST),
        loss="huber",
        f_scale=DELTA,
        x_scale="jac",
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
        max_nfev=200,
    )
    better = _objective(done.x, law, logs, log_loss) <= _objective(start, law, logs, log_loss)
    return np.asarray(done.x if better else start)


def _draw(
    law: Law, theta: Array, logs: Array, residuals: Array, draws: int, seed: int
) -> list[Array]:
    """Log constants of bootstrap draws: residuals are drawn again and added to the fit.

    Drawing points again would often leave too few distinct ones on small grids. The residuals of a
    fit are smaller than the noise by its degrees of freedom, which the factor corrects. The draws
    are smoothed (Silverman's bandwidth): the fit passes through some points, and with a part of the
    residuals at zero the intervals of such a median-like fit would be too narrow.
    """
    generator = np.random.default_rng(seed)
    fitted = law.log_loss(theta, logs)
    size = len(residuals)
    freedom = max(size - len(theta), 1)
    noise = (residuals - np.median(residuals)) * np.sqrt(size / freedom)
    spread = min(noise.std(), np.subtract(*np.quantile(noise, [0.75, 0.25])) / 1.34)
    bandwidth = 0.9 * spread * size**-0.2
    return [
        _refine(
            law,
            theta,
            logs,
            fitted + generator.choice(noise, size) + bandwidth * generator.standard_normal(size),
        )
        for _ in range(draws)
    ]
