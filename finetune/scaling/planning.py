"""Plans for a compute budget: the best model size and tokens, batch size and time.

A plan uses one set of constants. Kaplan's plan comes from his own rules for efficient training
(Kaplan et al. 2020, appendix A), and not from his L(N, D), which was fitted apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log

import numpy as np

from finetune.scaling.analysis import ScalingFits
from finetune.scaling.fitting import Interval, get_law
from finetune.scaling.laws import LAWS, PF_DAY, PUBLISHED, SOURCES, Law
from finetune.scaling.points import FLOPS_PER_PARAMETER_AND_TOKEN

EXTRAPOLATION = 10.0
"""Budgets beyond the largest measured one by more than this factor are marked."""


@dataclass(frozen=True)
class Allocation:
    """How a compute budget is spent. Values of published constants have no interval.

    Attributes:
        compute: FLOPs.
        parameters: N.
        tokens: D.
        loss: Predicted loss in nats per token; the interval is that of the law and leaves out the
            noise of a single run.
    """

    compute: float
    parameters: Interval
    tokens: Interval
    loss: Interval


@dataclass(frozen=True)
class Plan:
    """A training run for a budget.

    Attributes:
        source: Whose constants.
        allocation: Model size, tokens and loss.
        batch: Tokens per update.
        updates: Number of updates, tokens / batch.
        seconds: Time at the stated rate, or None.
        notes: What limits the plan.
    """

    source: str
    allocation: Allocation
    batch: float
    updates: float
    seconds: float | None
    notes: tuple[str, ...]


def allocate(
    law: Law, constants: Mapping[str, float], compute: float, flops_factor: float
) -> tuple[float, float, float]:
    """N, D and loss with the least loss where compute = flops_factor·N·D."""
    theta = np.log([constants[name] for name in law.constants])
    log_product = log(compute / flops_factor)
    log_n = law.best_log_parameters(theta, log_product)
    log_d = log_product - log_n
    loss = float(law.log_loss(theta, np.array([[log_n, log_d]]))[0])
    return exp(log_n), exp(log_d), exp(loss)


def allocate_by_fit(fits: ScalingFits, law: str, compute: float) -> Allocation:
    """The best use of a budget by the fit of `kaplan` or `hoffmann`, with intervals.

    Raises:
        UsageError: The law was not fitted.
    """
    fit = fits.get_fit(law)
    form = get_law(fit)

    def interval(part: int) -> Interval:
        return fit.interval(lambda values: allocate(form, values, compute, fits.flops_factor)[part])

    return Allocation(compute, interval(0), interval(1), interval(2))


def predict_loss(fits: ScalingFits, law: str, parameters: float, tokens: float) -> Interval:
    """The loss at N and D by the fit of `kaplan` or `hoffmann`, with its interval."""
    fit = fits.get_fit(law)
    form = get_law(fit)
    return fit.interval(lambda values: form.loss(values, N=parameters, D=tokens))


def compute_critical_batch(loss: float) -> float:
    """Critical batch size in tokens at a loss; Kaplan et al., equation 5.3."""
    return float(2e8 / loss ** (1 / 0.21))


def plan_by_fit(
    fits: ScalingFits,
    law: str,
    compute: float,
    *,
    batch: float | None = None,
    rate: float | None = None,
) -> Plan:
    """Plans with the constants of a fit.

    Args:
        fits: What `gptft scale fit` wrote.
        law: `hoffmann` or `kaplan`.
        compute: Budget in FLOPs.
        batch: Tokens per update; by default Kaplan's critical batch at the predicted loss.
        rate: FLOPs per second that the hardware reaches in training.
    """
    allocation = allocate_by_fit(fits, law, compute)
    notes = []
    if fits.compute_range and compute > EXTRAPOLATION * fits.compute_range[1]:
        factor = compute / fits.compute_range[1]
        notes.append(
            f"the budget is {factor:.3g} times the largest measured one: an extrapolation, whose "
            "interval holds only if the law does"
        )
    return _complete(f"fit of {law}", allocation, batch, rate, notes)


def plan_by_hoffmann(
    compute: float, source: str, *, batch: float | None = None, rate: float | None = None
) -> Plan:
    """Plans with published constants of Hoffmann's form; arguments as for `plan_by_fit`."""
    [constants] = [
        entry.constants for entry in PUBLISHED if entry.source == source and entry.law == "hoffmann"
    ]
    law = LAWS["hoffmann"]
    values = allocate(law, constants, compute, FLOPS_PER_PARAMETER_AND_TOKEN)
    notes = []
    if source == SOURCES.hoffmann:
        notes.append(
            "the constants are rounded in the paper, which gives more tokens per parameter than "
            "the authors' own 20 at large budgets; Besiroglu's re-fit agrees with the 20"
        )
    allocation = Allocation(compute, *map(_exact, values))
    return _complete(source, allocation, batch, rate, notes)


def plan_by_kaplan(
    compute: float, *, batch: float | None = None, rate: float | None = None
) -> Plan:
    """Plans with Kaplan's rules for compute-efficient training; arguments as for `plan_by_fit`.

    C_min = C/(1 + B/B_crit) in PF-days; N = 1.3e9·C_min^0.73; loss (3.1e8/C_min)^0.050; D is what
    the budget leaves, C/(6N). The default batch is the critical one, at which C_min = C/2.
    """
    smallest = compute / PF_DAY / 2
    for _ in range(50):  # B_crit depends on the loss, and the loss on C_min.
        loss = (3.1e8 / smallest) ** 0.050
        critical = compute_critical_batch(loss)
        smallest = compute / PF_DAY / (1 + (critical if batch is None else batch) / critical)
    parameters = 1.3e9 * smallest**0.73
    tokens = compute / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters)
    allocation = Allocation(compute, *map(_exact, (parameters, tokens, loss)))
    notes = ["N is without embeddings"]
    return _complete(SOURCES.kaplan, allocation, batch, rate, notes)


def _exact(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"))


def _complete(
    source: str,
    allocation: Allocation,
    batch: float | None,
    rate: float | None,
    notes: list[str],
) -> Plan:
    if batch is None:
        batch = compute_critical_batch(allocation.loss.value)
        notes.append(
            "the batch is Kaplan's critical batch at this loss, measured on WebText2: twice the "
            "fewest updates and twice the fewest tokens"
        )
    updates = allocation.tokens.value / batch
    seconds = None if rate is None else allocation.compute / rate
    return Plan(source, allocation, batch, updates, seconds, tuple(notes))
