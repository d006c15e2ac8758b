"""The gradient noise scale of McCandlish et al. (2018), An Empirical Model of Large-Batch Training.

The simple noise scale is tr Σ / |G|²: G is the gradient over all data, and Σ the covariance of the
gradients of single examples. It is measured in examples. A batch much smaller than it wastes
updates, because its gradient is mostly noise. A batch much larger wastes examples.

An update estimates tr Σ and |G|² without further passes (appendix A.1): its examples are cut into
groups, and the squared gradient norms of the groups are compared with that of the whole update.

The estimate allows groups of unequal sizes and examples of unequal weights. Let the gradient of an
update be g = Σ_i w_i g_i over its N examples, with Σ_i w_i = 1 and independent g_i of mean G and
covariance Σ, and let p_m be the part of g that group m adds. With W_m = Σ w_i and V_m = Σ w_i² over
the group's examples and V = Σ_m V_m,

    E |p_m|² = W_m² |G|² + V_m tr Σ        E |g|² = |G|² + V tr Σ.

So the mean of the squared norms of the groups' own gradients G_m = p_m / W_m, in which a group has
the weight W_m, has the expectation |G|² + tr Σ · Σ_m V_m / W_m. That is the paper's |G_small|² with
1/B_small = Σ_m V_m / W_m; |g|² is its |G_big|² with 1/B_big = V. Solving both for |G|² and tr Σ
gives the equations of appendix A.1. With equal weights 1/B_small is M / N for M groups, and the
estimate of tr Σ is the mean square between groups of a one-way analysis of variance. With unequal
weights an update varies like one of 1/V examples; the tr Σ that is estimated is multiplied by N·V,
so that tr Σ / N is always the variance of an update of N examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
DECAY = 0.99
"""Of the running averages, for each update: they reach back about 100 updates."""


class GroupSizes(NamedTuple):
    """The sizes of an update's groups, for `estimate_moments`."""

    shares: tuple[float, ...]
    """W_m: each group's part of the update's loss weights. They sum to 1."""
    inverse_small: float
    """1/B_small, in examples."""
    inverse_big: float
    """1/B_big: 1 / the number of examples in the update."""


def measure_groups(weights: Sequence[NDArray[np.float64]]) -> GroupSizes | None:
    """Returns the sizes of groups from the loss weights of their examples.

    Args:
        weights: For each group the weights w of its examples, on any scale. Empty groups, and
            groups whose weights are all 0, do not count.

    Returns:
        The sizes of the groups that count, or None if there are fewer than two.
    """
    counted = [group for group in weights if group.sum() > 0]
    if len(counted) < 2:
        return None
    everything = np.concatenate(counted)
    total, squares = everything.sum(), np.square(everything).sum()
    shares = [float(group.sum() / total) for group in counted]
    # In units of examples: the squares sum to 1 / N, as they do where all weights are equal.
    scale = 1 / (len(everything) * squares)
    inverse_small = sum(
        scale * np.square(group).sum() / share for group, share in zip(counted, shares, strict=True)
    )
    return GroupSizes(tuple(shares), float(inverse_small), 1 / len(everything))


class GradientMoments(NamedTuple):
    """Estimates of one update. They are unbiased, and either may be negative."""

    noise: float
    """tr(Σ), the summed variances of an example's gradient."""
    signal: float
    """|G|², the squared norm of the true gradient."""


def estimate_moments(small: float, big: float, sizes: GroupSizes) -> GradientMoments:
    """Estimates tr(Σ) and |G|² from squared gradient norms (McCandlish et al., appendix A.1).

    Args:
        small: Σ_m |p_m|² / W_m: the mean of |G_m|² over groups, weighted by their shares.
        big: |g|², the squared norm of the whole update's gradient, before clipping.
        sizes: The sizes of the groups.
    """
    noise = (small - big) / (sizes.inverse_small - sizes.inverse_big)
    return GradientMoments(noise, big - noise * sizes.inverse_big)


class NoiseScale(NamedTuple):
    """A gradient noise scale tr(Σ) / |G|² in examples, with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    """Infinite where |G|² may be 0 by the interval."""


@dataclass
class MomentAverages:
    """Running averages of the moments of updates, and of their squares for the interval.

    An update that lies k updates back has the weight decay^k. Dividing by the sum of the weights
    gives the exponential average with bias correction; decay 1 gives the plain mean. tr(Σ) and |G|²
    are averaged apart, as a mean of ratios would be biased and might not exist (appendix A.1).
    """

    decay: float = DECAY
    weight: float = 0.0
    """Sum of the weights."""
    square_weight: float = 0.0
    """Sum of the squared weights."""
    noise: float = 0.0
    """Weighted sum of the estimates of tr(Σ)."""
    signal: float = 0.0
    """Of those of |G|²."""
    noise_square: float = 0.0
    signal_square: float = 0.0
    product: float = 0.0
    """Of noise times signal."""

    def add(self, moments: GradientMoments) -> None:
        """Takes the estimates of an update into account."""
        noise, signal = moments
        decay = self.decay
        self.weight = decay * self.weight + 1
        self.square_weight = decay * decay * self.square_weight + 1
        self.noise = decay * self.noise + noise
        self.signal = decay * self.signal + signal
        self.noise_square = decay * self.noise_square + noise * noise
        self.signal_square = decay * self.signal_square + signal * signal
        self.product = decay * self.product + noise * signal

    @property
    def moments(self) -> GradientMoments:
        """The averages of tr(Σ) and |G|²; NaN before the first update."""
        weight = self.weight or math.nan
        return GradientMoments(self.noise / weight, self.signal / weight)

    @property
    def effective_updates(self) -> float:
        """How many equally weighted updates would average as well."""
        return self.weight**2 / self.square_weight if self.square_weight else 0.0

    def noise_scale(self) -> NoiseScale | None:
        """Returns the noise scale, or None while it is not yet known.

        It is not known while an average is not positive, and with fewer than two updates. The
        interval is Fieller's for a ratio of means, from the spread of the estimates.
        """
        noise, signal = self.moments
        count = self.effective_updates
        if not (noise > 0 and signal > 0 and count > 1.5):
            return None
        # The variances of the weighted means: that of one estimate over the effective number.
        factor = 1 / (count - 1)
        noise_variance = max(self.noise_square / self.weight - noise * noise, 0.0) * factor
        signal_variance = max(self.signal_square / self.weight - signal * signal, 0.0) * factor
        covariance = (self.product / self.weight - noise * signal) * factor
        quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) ** 2
        # The interval holds the ratios r with (noise - r·signal)² <= quantile · its variance:
        # a·r² - 2·b·r + c <= 0.
        a = signal * signal - quantile * signal_variance
        b = noise * signal - quantile * covariance
        c = noise * noise - quantile * noise_variance
        root = math.sqrt(max(b * b - a * c, 0.0))
        low = c / (b + root) if c > 0 else 0.0
        high = (b + root) / a if a > 0 else math.inf
        return NoiseScale(noise / signal, low, high)
