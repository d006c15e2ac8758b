"""The forms of scaling laws, and the constants that were published for them.

Every constant is positive, so a law is fitted over the logarithms of its constants. Losses are in
nats per token, N in parameters, D in tokens, C in FLOPs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

PF_DAY = 1e15 * 86_400
"""FLOPs of one petaflop/s-day, the unit of compute in Kaplan et al."""


class Law(ABC):
    """A form of the loss over V variables with P constants.

    Attributes:
        name: Short name, such as `hoffmann`.
        formula: The formula as text.
        variables: What it is a function of, such as N and D.
        constants: Names of its constants, in the order of theta.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    constants: tuple[str, ...]

    @abstractmethod
    def log_loss(self, theta: Array, logs: Array) -> Array:
        """Log losses (R,) at the logarithms of the variables (R, V) for log constants (P,)."""

    @abstractmethod
    def jacobian(self, theta: Array, logs: Array) -> Array:
        """Derivatives of `log_loss` by the log constants, (R, P)."""

    @abstractmethod
    def move(self, theta: Array, origin: Array) -> Array:
        """Turns log constants for `logs - origin` into those for `logs`."""

    @abstractmethod
    def search(self, logs: Array, log_loss: Array) -> list[Array]:
        """Starting points, best first: a grid of exponents, the linear constants solved for each.

        This is variable projection: with the exponents fixed, the other constants solve a linear
        least-squares problem with positive unknowns.
        """

    @abstractmethod
    def best_log_parameters(self, theta: Array, log_product: float) -> float:
        """Log of the N with the least loss where N·D is given by its logarithm."""

    def loss(self, constants: Mapping[str, float], **values: float) -> float:
        """The loss in nats per token at values of the variables, such as N=1e9, D=2e10."""
        theta = np.log([constants[name] for name in self.constants])
        logs = np.log([[values[name] for name in self.variables]])
        return float(np.exp(self.log_loss(theta, logs)[0]))


_EXPONENTS = np.geomspace(0.02, 2, 24)
"""The grid of exponents; published ones are between 0.05 and 0.8."""
_STARTS = 4
_ABSENT = 1e-4
"""A term that the linear solution leaves out starts at this part of the loss."""


class PowerLaw(Law):
    """A sum of powers, with or without a constant: E + A/N^alpha + B/D^beta.

    Args:
        name: Short name.
        formula: The formula as text.
        variables: The V variables.
        coefficients: V names of the coefficients.
        exponents: V names of the exponents.
        irreducible: Name of the constant that is added, or "".
        critical: A coefficient is a value of its variable, X_c of (X_c/X)^alpha, and not a factor.
    """

    def __init__(
        self,
        name: str,
        formula: str,
        variables: Sequence[str],
        coefficients: Sequence[str],
        exponents: Sequence[str],
        irreducible: str = "",
        critical: bool = False,
    ) -> None:
        self.name, self.formula = name, formula
        self.variables = tuple(variables)
        self.constants = (*coefficients, *exponents, *([irreducible] if irreducible else []))
        self._critical = critical

    def _terms(self, theta: Array, logs: Array) -> Array:
        """Logs of all terms, (R, V) or (R, V + 1)."""
        count = len(self.variables)
        exponents = np.exp(theta[count : 2 * count])
        scale = exponents if self._critical else 1.0
        terms = scale * theta[:count] - exponents * logs
        if len(theta) == 2 * count:
            return terms
        return np.column_stack([terms, np.full(len(logs), theta[-1])])

    def log_loss(self, theta: Array, logs: Array) -> Array:  # noqa: D102
        return np.asarray(np.logaddexp.reduce(self._terms(theta, logs), axis=1))

    def jacobian(self, theta: Array, logs: Array) -> Array:  # noqa: D102
        count = len(self.variables)
        terms = self._terms(theta, logs)
        shares = np.exp(terms - np.logaddexp.reduce(terms, axis=1)[:, None])
        exponents = np.exp(theta[count : 2 * count])
        powers = shares[:, :count]
        if self._critical:
            columns = [powers * exponents, powers * exponents * (theta[:count] - logs)]
        else:
            columns = [powers, -powers * exponents * logs]
        return np.column_stack([*columns, shares[:, count:]])

    def move(self, theta: Array, origin: Array) -> Array:  # noqa: D102
        count = len(self.variables)
        moved = theta.copy()
        exponents = np.exp(theta[count : 2 * count])
        moved[:count] += origin if self._critical else exponents * origin
        return moved

    def search(self, logs: Array, log_loss: Array) -> list[Array]:  # noqa: D102
        count = len(self.variables)
        found = []
        for exponents in product(_EXPONENTS, repeat=count):
            columns = np.exp(-np.array(exponents) * logs)
            if len(self.constants) > 2 * count:
                columns = np.column_stack([columns, np.ones(len(logs))])
            # Divided by the loss, so that the residuals are relative, as those of the fit are.
            factors, error = nnls(columns * np.exp(-log_loss)[:, None], np.ones(len(logs)))
            factors = np.log(np.maximum(factors, _ABSENT * np.exp(log_loss.mean())))
            if self._critical:
                factors[:count] /= exponents
            theta = np.concatenate([factors[:count], np.log(exponents), factors[count:]])
            found.append((error, theta))
        found.sort(key=lambda pair: pair[0])
        return [theta for _, theta in found[:_STARTS]]

    def best_log_parameters(self, theta: Array, log_product: float) -> float:
        """Hoffmann et al., equation 4."""
        factor_n, factor_d, alpha, beta = theta[0], theta[1], *np.exp(theta[2:4])
        log_ratio = np.log(alpha / beta) + factor_n - factor_d
        return float((log_ratio + beta * log_product) / (alpha + beta))


class KaplanLaw(Law):
    """[(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D; Kaplan et al., equation 1.5."""

    name = "kaplan"
    formula = "L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D"
    variables = ("N", "D")
    constants = ("N_c", "D_c", "alpha_N", "alpha_D")

    def _terms(self, theta: Array, logs: Array) -> Array:
        ratio = np.exp(theta[2] - theta[3])
        return np.column_stack([ratio * (theta[0] - logs[:, 0]), theta[1] - logs[:, 1]])

    def log_loss(self, theta: Array, logs: Array) -> Array:  # noqa: D102
        return np.asarray(np.exp(theta[3]) * np.logaddexp.reduce(self._terms(theta, logs), axis=1))

    def jacobian(self, theta: Array, logs: Array) -> Array:  # noqa: D102
        terms = self._terms(theta, logs)
        total = np.logaddexp.reduce(terms, axis=1)
        share = np.exp(terms[:, 0] - total)
        alpha_n, alpha_d = np.exp(theta[2:])
        by_alpha_n = alpha_n * share * (theta[0] - logs[:, 0])
        return np.column_stack(
            [alpha_n * share, alpha_d * (1 - share), by_alpha_n, alpha_d * total - by_alpha_n]
        )

    def move(self, theta: Array, origin: Array) -> Array:  # noqa: D102
        return theta + np.concatenate([origin, [0, 0]])

    def search(self, logs: Array, log_loss: Array) -> list[Array]:  # noqa: D102
        found = []
        for alpha_n, alpha_d in product(_EXPONENTS, repeat=2):
            ratio = alpha_n / alpha_d
            columns = np.exp(np.column_stack([-ratio * logs[:, 0], -logs[:, 1]]))
            scaled = columns * np.exp(-log_loss / alpha_d)[:, None]
            if not np.isfinite(scaled).all():
                continue
            factors, _ = nnls(scaled, np.ones(len(logs)))
            fitted = np.log(np.maximum(scaled @ factors, np.finfo(float).tiny))
            error = np.linalg.norm(alpha_d * fitted)  # of the log loss, not of its power
            smallest = _ABSENT * np.exp(log_loss.mean() / alpha_d)
            factors = np.log(np.maximum(factors, smallest))
            theta = np.array([factors[0] / ratio, factors[1], np.log(alpha_n), np.log(alpha_d)])
            found.append((error, theta))
        found.sort(key=lambda pair: pair[0])
        return [theta for _, theta in found[:_STARTS]]

    def best_log_parameters(self, theta: Array, log_product: float) -> float:
        """The zero of the derivative along N·D = constant."""
        ratio = np.exp(theta[2] - theta[3])
        return float(
            (theta[2] - theta[3] + ratio * theta[0] + log_product - theta[1]) / (1 + ratio)
        )


def _single(variable: str) -> PowerLaw:
    critical, exponent = f"{variable}_c", f"alpha_{variable}"
    formula = f"L({variable}) = ({critical}/{variable})^{exponent}"
    return PowerLaw(f"L({variable})", formula, [variable], [critical], [exponent], critical=True)


HOFFMANN = PowerLaw(
    "hoffmann",
    "L(N, D) = E + A/N^alpha + B/D^beta",
    ["N", "D"],
    ["A", "B"],
    ["alpha", "beta"],
    irreducible="E",
)
KAPLAN = KaplanLaw()
STEPS = PowerLaw(
    "L(N,S)",
    "L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S",
    ["N", "S_min"],
    ["N_c", "S_c"],
    ["alpha_N", "alpha_S"],
    critical=True,
)
SINGLE = tuple(_single(variable) for variable in ("N", "D", "C"))
LAWS: dict[str, Law] = {law.name: law for law in (*SINGLE, KAPLAN, HOFFMANN, STEPS)}


@dataclass(frozen=True)
class Published:
    """Constants of a paper for one law."""

    source: str
    law: str
    constants: Mapping[str, float]


class _Names(NamedTuple):
    kaplan: str = "Kaplan et al. 2020"
    hoffmann: str = "Hoffmann et al. 2022"
    refit: str = "Besiroglu et al. 2024"


SOURCES = _Names()
PUBLISHED = (
    Published(SOURCES.kaplan, "L(N)", {"N_c": 8.8e13, "alpha_N": 0.076}),
    Published(SOURCES.kaplan, "L(D)", {"D_c": 5.4e13, "alpha_D": 0.095}),
    Published(SOURCES.kaplan, "L(C)", {"C_c": 1.6e7 * PF_DAY, "alpha_C": 0.057}),
    Published(
        SOURCES.kaplan,
        "kaplan",
        {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
    ),
    Published(
        SOURCES.kaplan,
        "L(N,S)",
        {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
    ),
    Published(
        SOURCES.hoffmann,
        "hoffmann",
        {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28},
    ),
    Published(
        SOURCES.refit,
        "hoffmann",
        {"A": 482.01, "B": 2085.43, "E": 1.8172, "alpha": 0.3478, "beta": 0.3658},
    ),
)
"""For comparison only. Kaplan's laws were fitted apart: N_c of one is not N_c of another."""
