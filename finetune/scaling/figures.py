"""Figures of fits: log-log lines, IsoFLOP profiles, contours of the loss, residuals."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from finetune.optional_packages import require_package
from finetune.scaling.analysis import ScalingFits
from finetune.scaling.fitting import Fit, Interval, get_law
from finetune.scaling.laws import Array
from finetune.scaling.points import Points
from finetune.storage import files

_UNITS = {"N": "N, parameters", "D": "D, tokens", "C": "C, FLOPs"}
_LOSS = "loss, nats per token"


def check_matplotlib() -> None:
    """Raises UsageError if matplotlib is not installed."""
    require_package("matplotlib", "plots", "a figure", otherwise="leave out --plots.")


def draw_figures(points: Points, fits: ScalingFits, folder: Path) -> list[str]:
    """Writes a PNG for each kind of figure that the fits allow, and returns their names.

    Raises:
        UsageError: matplotlib is not installed, or the folder cannot be written.
    """
    check_matplotlib()
    figures = {"residuals.png": _draw_residuals(points, fits)}
    if single := [name for name, fit in fits.fits.items() if len(get_law(fit).variables) == 1]:
        figures["power_laws.png"] = _draw_power_laws(points, fits, single)
    if fits.isoflop is not None:
        figures["isoflop.png"] = _draw_isoflop(points, fits)
    if joint := [name for name, fit in fits.fits.items() if get_law(fit).variables == ("N", "D")]:
        figures["contours.png"] = _draw_contours(points, fits, joint)
    return write_figures(figures, folder)


def write_figures(figures: Mapping[str, Any], folder: Path) -> list[str]:
    """Writes figures of matplotlib as PNG files, and returns the sorted file names.

    Raises:
        UsageError: The folder cannot be written.
    """
    for name, figure in figures.items():
        content = BytesIO()
        # No version or date in the file: the same fits give the same file.
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
        files.write_atomically(folder / name, content.getvalue())
    return sorted(figures)


def make_axes(count: int) -> tuple[Any, list[Any]]:
    """A figure with `count` axes side by side."""
    # Without pyplot: no global state, no display, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * count, 4.5), layout="constrained")
    axes = [figure.add_subplot(1, count, number + 1) for number in range(count)]
    for item in axes:
        item.grid(alpha=0.3)
    return figure, axes


def _span(values: Array) -> Array:
    return np.geomspace(values.min(), values.max(), 100)


def _draw_power_laws(points: Points, fits: ScalingFits, names: list[str]) -> Any:
    """All points, those that were fitted, and the line with its interval."""
    figure, axes = make_axes(len(names))
    for axis, name in zip(axes, names, strict=True):
        fit = fits.fits[name]
        law = get_law(fit)
        [variable] = law.variables
        values, used = points.values[variable], list(fits.indices[name])
        line = _span(values)
        axis.plot(values, points.loss, ".", color="0.75", label="points")
        axis.plot(values[used], points.loss[used], "o", label="fitted")
        bands = [_predict(fit, variable, x) for x in line]
        axis.plot(line, [band.value for band in bands], label=law.formula)
        axis.fill_between(line, *zip(*[(b.low, b.high) for b in bands], strict=True), alpha=0.2)
        axis.set(xscale="log", yscale="log", xlabel=_UNITS[variable], ylabel=_LOSS)
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.yaxis.set_minor_formatter("{x:.3g}")
        axis.legend(fontsize="small")
    return figure


def _draw_isoflop(points: Points, fits: ScalingFits) -> Any:
    """Loss over N at each budget with its parabola; the minima that are not refused."""
    assert fits.isoflop is not None
    figure, [axis] = make_axes(1)
    for profile in fits.isoflop.profiles:
        indices = list(profile.indices)
        n = points.values["N"][indices]
        refused = " (refused)" if profile.refused else ""
        [dots] = axis.plot(
            n, points.loss[indices], "o", markersize=4, label=f"{profile.compute:.3g}{refused}"
        )
        line = _span(n)
        style = ":" if profile.refused else "-"
        axis.plot(line, np.polyval(profile.curve, np.log(line)), style, color=dots.get_color())
        if not profile.refused:
            axis.plot(np.exp(profile.log_parameters), profile.loss, "k*")
    axis.set(xscale="log", xlabel=_UNITS["N"], ylabel=_LOSS)
    axis.legend(fontsize="small", title="C, FLOPs")
    return figure


def _draw_contours(points: Points, fits: ScalingFits, names: list[str]) -> Any:
    """Fitted loss over N and D, the measured points, and the best N and D of every budget."""
    figure, axes = make_axes(len(names))
    n, d = _span(points.values["N"]), _span(points.values["D"])
    grid = np.log(np.stack(np.meshgrid(n, d), axis=-1).reshape(-1, 2))
    for axis, name in zip(axes, names, strict=True):
        law, theta = get_law(fits.fits[name]), _theta(fits.fits[name])
        loss = np.exp(law.log_loss(theta, grid)).reshape(len(d), len(n))
        colors = {"vmin": points.loss.min(), "vmax": points.loss.max()}
        lines = axis.contour(n, d, loss, levels=15, **colors)
        axis.clabel(lines, fontsize="x-small", fmt="%.3g")
        dots = axis.scatter(points.values["N"], points.values["D"], c=points.loss, s=14, **colors)
        products = np.log(_span(points.values["N"] * points.values["D"]))
        best = np.array([law.best_log_parameters(theta, product) for product in products])
        axis.plot(np.exp(best), np.exp(products - best), "k--", label="best N and D")
        axis.set(xscale="log", yscale="log", xlabel=_UNITS["N"], ylabel=_UNITS["D"], title=name)
        axis.set(xlim=(n[0] / 1.1, n[-1] * 1.1), ylim=(d[0] / 1.1, d[-1] * 1.1))
        axis.legend(fontsize="small")
        figure.colorbar(dots, ax=axis, label=f"measured {_LOSS}")
    return figure


def _draw_residuals(points: Points, fits: ScalingFits) -> Any:
    """Measured over fitted loss against the measured loss, for every law."""
    figure, [axis] = make_axes(1)
    for name, fit in fits.fits.items():
        used = list(fits.indices[name])
        axis.plot(points.loss[used], 100 * np.array(fit.residuals), ".", label=name)
    axis.axhline(0, color="gray", linewidth=1)
    axis.set(xscale="log", xlabel=f"measured {_LOSS}", ylabel="residual of the log loss, %")
    axis.legend(fontsize="small")
    return figure


def _predict(fit: Fit, variable: str, value: float) -> Interval:
    law = get_law(fit)
    return fit.interval(lambda constants: law.loss(constants, **{variable: value}))


def _theta(fit: Fit) -> Array:
    return np.log(list(fit.values.values()))
