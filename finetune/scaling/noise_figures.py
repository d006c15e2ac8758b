"""Figures of the gradient noise scale: against the loss, and the cost of batch sizes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune.scaling.critical_batch import (
    KAPLAN_BATCH,
    KAPLAN_EXPONENT,
    BatchAdvice,
    BatchFit,
    NoisePoint,
    compute_cost,
)
from finetune.scaling.figures import make_axes, write_figures

_MARKERS = {"log": "o", "checkpoint": "s", "model": "D"}


def draw_noise_figures(
    points: Sequence[NoisePoint],
    fit: BatchFit | None,
    advice: BatchAdvice | None,
    unit: str,
    folder: Path,
) -> list[str]:
    """Writes PNG files and returns their names.

    Args:
        points: Measured noise scales.
        fit: The fit against the loss, if there is one.
        advice: Costs of batch sizes, if the noise scale is known.
        unit: What an example is called.
        folder: Where the files go.

    Raises:
        UsageError: The folder cannot be written.
    """
    figures = {}
    if known := [point for point in points if point.scale]:
        figures["noise_scale.png"] = _draw_points(known, fit, unit)
    if advice is not None:
        figures["batch_cost.png"] = _draw_cost(advice, unit)
    return write_figures(figures, folder)


def _draw_points(points: Sequence[NoisePoint], fit: BatchFit | None, unit: str) -> Any:
    """Noise scales with intervals over the update and over the loss."""
    figure, axes = make_axes(2)
    tokens = all(point.tokens_per_example for point in points)
    for key, axis in zip(("update", "loss"), axes, strict=True):
        for run, source in dict.fromkeys((point.run, point.source) for point in points):
            chosen = [point for point in points if (point.run, point.source) == (run, source)]
            factor = [(point.tokens_per_example or 1) if tokens else 1 for point in chosen]
            scales = [point.scale for point in chosen if point.scale]
            value = [scale.value * k for scale, k in zip(scales, factor, strict=True)]
            ends = [
                (
                    (scale.value - scale.low) * k,
                    (scale.high - scale.value) * k if math.isfinite(scale.high) else 0.0,
                )
                for scale, k in zip(scales, factor, strict=True)
            ]
            axis.errorbar(
                [getattr(point, key) for point in chosen],
                value,
                yerr=np.transpose(ends),
                fmt=_MARKERS[source],
                markersize=4,
                capsize=2,
                label=f"{Path(run).name}, {source}",
            )
        axis.set(yscale="log", ylabel=f"noise scale, {'tokens' if tokens else f'{unit}s'}")
    axes[0].set(xlabel="update")
    axes[1].set(xlabel="training loss")
    if fit is not None:
        losses = np.geomspace(*fit.loss_range, 50)
        axes[1].plot(losses, [fit.critical_batch(loss) for loss in losses], label="fit")
        kaplan = KAPLAN_BATCH / losses ** (1 / KAPLAN_EXPONENT)
        axes[1].plot(losses, kaplan, "--", color="gray", label="Kaplan et al., WebText2")
        axes[1].set(xscale="log")
        axes[1].xaxis.set_major_formatter("{x:.3g}")
        axes[1].xaxis.set_minor_formatter("{x:.3g}")
    axes[1].invert_xaxis()
    for axis in axes:
        axis.legend(fontsize="small")
    return figure


def _draw_cost(advice: BatchAdvice, unit: str) -> Any:
    """Updates against examples for all batch sizes, and some of them marked."""
    figure, [axis] = make_axes(1)
    critical = advice.critical.value
    sizes = critical * np.geomspace(1 / 32, 32, 200)
    curve = [compute_cost(size, critical) for size in sizes]
    axis.plot([cost.examples for cost in curve], [cost.updates for cost in curve])
    marked = [
        (advice.batch, f"this run, {advice.batch}"),
        (critical, f"noise scale, {critical:.3g}"),
    ]
    for size, label in marked:
        cost = compute_cost(size, critical)
        axis.plot([cost.examples], [cost.updates], "o", label=label)
    axis.set(xscale="log", yscale="log")
    axis.set(xlabel=f"{unit}s / fewest {unit}s", ylabel="updates / fewest updates")
    axis.legend(fontsize="small", title=f"batch, {unit}s")
    return figure
