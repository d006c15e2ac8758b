"""Batch sizes and the gradient noise scale: what they cost, and how it grows as the loss falls.

McCandlish et al. (2018) find that to reach a given loss with batches of B examples takes S updates
and E = B·S examples with (S / S_min − 1)(E / E_min − 1) = 1, where the critical batch E_min / S_min
is about the noise scale. Kaplan et al. (2020), section 5.1, find that it depends on the loss alone.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from finetune.scaling.fitting import CONFIDENCE, Interval
from finetune.storage import files
from finetune.training.noise_scale import GradientMoments, MomentAverages, NoiseScale
from task_formats import UsageError

WINDOWS = 12
"""Most points that the log of a run gives."""
MIN_WINDOW = 20
"""Updates of such a point, at least."""
MIN_LOSS_RANGE = 1.1
"""Losses of a fit must vary by this factor."""
KAPLAN_BATCH, KAPLAN_EXPONENT = 2e8, 0.21
"""B* in tokens and alpha_B of Kaplan et al., equation 5.3, for WebText2."""


@dataclass(frozen=True)
class NoisePoint:
    """The gradient noise at one stage of a run.

    Attributes:
        run: The run folder.
        source: `log` if the run measured it in training, or `checkpoint` or `model`.
        update: The update; of `log` the middle one.
        loss: Mean training loss.
        moments: tr Σ and |G|².
        scale: The noise scale in examples, or None if it is not known.
        examples: Examples in an update of the run.
        tokens_per_example: Predicted tokens of an example in pre-training, else None.
    """

    run: str
    source: str
    update: int
    loss: float
    moments: GradientMoments
    scale: NoiseScale | None
    examples: int
    tokens_per_example: float | None


def read_log(path: Path, run: str, is_pretraining: bool) -> list[NoisePoint]:
    """Averages what a run with `train.noise_scale` logged over windows of its updates.

    Args:
        path: Its metrics.jsonl.
        run: Name of the run in the points.
        is_pretraining: Whether examples are blocks of text.

    Returns:
        At most WINDOWS points of at least MIN_WINDOW updates; none if nothing was measured.
    """
    events = [
        event
        for event in _read_events(path)
        if event.get("event") == "train" and event.get("gradient_noise") is not None
    ]
    count = min(WINDOWS, len(events) // MIN_WINDOW)
    points = []
    for window in np.array_split(np.array(events, dtype=object), count) if count else ():
        averages = MomentAverages(decay=1)
        for event in window:
            averages.add(GradientMoments(event["gradient_noise"], event["gradient_signal"]))
        points.append(
            NoisePoint(
                run,
                "log",
                round(np.mean([event["update"] for event in window])),
                float(np.mean([event["loss"] for event in window])),
                averages.moments,
                averages.noise_scale(),
                max(event["examples"] for event in window),
                _count_targets(window) if is_pretraining else None,
            )
        )
    return points


def _count_targets(events: Iterable[dict[str, Any]]) -> float:
    """Mean predicted tokens of a block: all but the first."""
    tokens, examples = (sum(event[name] for event in events) for name in ("tokens", "examples"))
    return float(tokens / examples - 1)


def _read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    events = []
    for line in files.decode_utf8(files.read_regular_file(path), str(path)).splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


class BatchCost(NamedTuple):
    """What training to the same loss costs with another batch, relative to the fewest possible."""

    batch: float
    """Examples."""
    updates: float
    """S / S_min = 1 + B_crit / B."""
    examples: float
    """E / E_min = 1 + B / B_crit."""


def compute_cost(batch: float, critical: float) -> BatchCost:
    """Returns the cost of a batch size at a critical batch size, both in examples.

    It solves (S / S_min − 1)(E / E_min − 1) = 1 with E / S = B and E_min / S_min = B_crit;
    McCandlish et al., section 2.3.
    """
    return BatchCost(batch, 1 + critical / batch, 1 + batch / critical)


class Fewest(NamedTuple):
    """What reaching the loss of a run takes at the least."""

    updates: float
    """S_min, with ever larger batches."""
    examples: float
    """E_min, with ever smaller batches."""


def compute_fewest(updates: int, batch: float, critical: float) -> Fewest:
    """Returns S_min and E_min of a run from its updates, its batch and the critical batch."""
    cost = compute_cost(batch, critical)
    return Fewest(updates / cost.updates, updates * batch / cost.examples)


def suggest_batch(critical: float) -> int:
    """Returns the power of two nearest to the critical batch, on a log scale; at least 1."""
    return int(2 ** max(0, round(math.log2(critical))))


def list_costs(critical: float, batch: int) -> list[BatchCost]:
    """Returns the costs of a run's batch and of powers of two around it and the critical one."""
    suggested = suggest_batch(critical)
    low, high = sorted((suggested, 2 ** round(math.log2(batch))))
    powers = range(max(0, int(math.log2(low)) - 3), int(math.log2(high)) + 4)
    sizes = {2**power for power in powers} | {batch}
    return [compute_cost(size, critical) for size in sorted(sizes)]


@dataclass(frozen=True)
class BatchAdvice:
    """What the latest known noise scale of a run says about batch sizes.

    Attributes:
        update: The update at which it was measured.
        batch: Examples in an update of the run.
        critical: The noise scale in examples, taken for the critical batch.
        suggested: The suggested batch.
        fewest: S_min and E_min of the run up to that update.
        costs: Costs of the run's batch and of others.
    """

    update: int
    batch: int
    critical: NoiseScale
    suggested: int
    fewest: Fewest
    costs: list[BatchCost]


def advise(points: Sequence[NoisePoint]) -> BatchAdvice | None:
    """Returns what the points of the last run say; None while its noise scale is not known.

    Measured weights go before the log.
    """
    known = [point for point in points if point.run == points[-1].run and point.scale]
    if not known:
        return None
    latest = max(known, key=lambda point: (point.source != "log", point.update))
    assert latest.scale is not None
    critical, batch = latest.scale.value, latest.examples
    return BatchAdvice(
        latest.update,
        batch,
        latest.scale,
        suggest_batch(critical),
        compute_fewest(latest.update, batch, critical),
        list_costs(critical, batch),
    )


@dataclass(frozen=True)
class BatchFit:
    """B_crit = batch / L^(1/exponent); Kaplan et al., equation 5.3.

    Attributes:
        batch: B*, in tokens.
        exponent: alpha_B.
        points: Number of fitted points.
        loss_range: Lowest and highest loss of the points.
    """

    batch: Interval
    exponent: Interval
    points: int
    loss_range: tuple[float, float]

    def critical_batch(self, loss: float) -> float:
        """Returns the critical batch in tokens at a loss in nats per token."""
        return float(self.batch.value / loss ** (1 / self.exponent.value))


def fit_critical_batch(points: Sequence[NoisePoint]) -> BatchFit | str:
    """Fits the noise scale of pre-training against the loss.

    A weighted straight line of log B over log L. Weights come from the intervals of the points.
    The intervals of the fit come from its residuals, or from the weights if these are larger.

    Returns:
        The fit, or the reason why there is none.
    """
    used = [
        (point.loss, point.tokens_per_example, point.scale)
        for point in points
        if point.tokens_per_example and point.scale and point.scale.low > 0
        if math.isfinite(point.scale.high)
    ]
    if len(used) < 3:
        return f"a fit of B_crit needs 3 points with a known interval, and there are {len(used)}"
    losses = np.array([loss for loss, _, _ in used])
    if losses.max() < MIN_LOSS_RANGE * losses.min():
        return (
            f"the loss hardly varies ({losses.min():.3g} to {losses.max():.3g}), so B_crit is not "
            "fitted against it"
        )
    log_batch = np.array([math.log(scale.value * tokens) for _, tokens, scale in used])
    errors = np.array([math.log(scale.high / scale.low) / (2 * 1.96) for _, _, scale in used])
    design = np.stack([np.ones_like(losses), -np.log(losses)], 1)
    covariance = np.linalg.inv(design.T @ (design / errors[:, None] ** 2))
    intercept, slope = covariance @ design.T @ (log_batch / errors**2)
    residuals = (log_batch - design @ [intercept, slope]) / errors
    freedom = len(used) - 2
    covariance *= max(1.0, float(residuals @ residuals) / freedom)
    margin = student_t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(np.diag(covariance))
    ends = [intercept - margin[0], intercept, intercept + margin[0]]
    low, value, high = (math.exp(min(end, 700)) for end in ends)
    if slope <= 0:
        return "the noise scale does not grow as the loss falls, so B_crit is not fitted against it"
    steepest, flattest = slope + margin[1], slope - margin[1]
    exponent = Interval(1 / slope, 1 / steepest, 1 / flattest if flattest > 0 else math.inf)
    batch = Interval(value, low, high)
    return BatchFit(batch, exponent, len(used), (float(losses.min()), float(losses.max())))


def check_points(points: Sequence[NoisePoint]) -> None:
    """Raises UsageError if there is nothing to show."""
    if not points:
        raise UsageError(
            "there are no checkpoints, and the log has no noise scale",
            cure="Train with --noise-scale, or keep the checkpoints of the run.",
        )
