"""All fits of one table of measured losses, and the JSON file that keeps them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.scaling.fitting import DELTA, Fit, Interval, fit_law
from finetune.scaling.isoflop import IsoFlop, Profile, fit_isoflop
from finetune.scaling.laws import HOFFMANN, KAPLAN, LAWS, SINGLE, STEPS, Law
from finetune.scaling.points import Points
from finetune.storage import files, json_files
from task_formats import UsageError

FORMAT_VERSION = 1
MIN_RATIO_RANGE = 4.0
"""D/N should vary by more than this factor between points."""
MAX_CONDITION = 100.0
_NO_LIMIT = 1e-3
"""An E below this part of the lowest loss is none."""
OUTLIER = 5.0
"""Residuals beyond this many robust standard deviations are outliers."""
_MIN_POINTS_FOR_OUTLIERS = 10
_NAMED_OUTLIERS = 5


@dataclass(frozen=True)
class ScalingFits:
    """The fits of one table.

    Attributes:
        fits: Law to fit.
        indices: Law to the points that it was fitted to.
        isoflop: Profiles at equal compute, if there are budgets with enough points.
        flops_factor: k in C = k·N·D.
        compute_range: Smallest and largest C of the points, or None.
        notes: What a reader must know: laws left out and why, doubts about fits.
    """

    fits: Mapping[str, Fit]
    indices: Mapping[str, tuple[int, ...]]
    isoflop: IsoFlop | None
    flops_factor: float
    compute_range: tuple[float, float] | None
    notes: tuple[str, ...]

    def get_fit(self, law: str) -> Fit:
        """The fit of a law. Raises UsageError if there is none."""
        if law not in self.fits:
            known = ", ".join(self.fits) or "none"
            raise UsageError(f"there is no fit of {law}", cure=f"Fitted laws: {known}.")
        return self.fits[law]


def fit_points(
    points: Points, *, bootstrap: int = 400, seed: int = 0, all_points: bool = False
) -> ScalingFits:
    """Fits every law whose variables were measured.

    Laws of one variable are fitted to the frontier: points that no smaller or equal value beats.
    Where only that variable varies, and with `all_points`, they are fitted to all points.

    Args:
        points: Measured losses.
        bootstrap: Number of bootstrap draws for the intervals.
        seed: Seed of the draws.
        all_points: Fit laws of one variable to all points.

    Raises:
        UsageError: No law can be fitted.
    """
    fits: dict[str, Fit] = {}
    chosen: dict[str, tuple[int, ...]] = {}
    notes: list[str] = []
    laws = [
        law for law in (*SINGLE, KAPLAN, HOFFMANN, STEPS) if {*law.variables} <= {*points.values}
    ]
    for law in laws:
        indices: NDArray[np.intp] = np.arange(len(points.loss))
        if len(law.variables) == 1 and not all_points and not _varies_alone(points, law):
            indices = points.frontier(law.variables[0])
        try:
            fit = fit_law(
                law,
                points.matrix(law.variables)[indices],
                points.loss[indices],
                bootstrap=bootstrap,
                seed=seed,
            )
        except UsageError as error:
            notes.append(f"{law.name} left out: {error.what}")
            continue
        fits[law.name], chosen[law.name] = fit, tuple(map(int, indices))
        notes += [*_find_doubts(fit, law, points), *_name_outliers(fit, points, indices)]
    if not fits:
        raise UsageError("no law can be fitted: " + "; ".join(notes))
    compute = points.values.get("C")
    if points.computed:
        notes.append(
            f"C = 6·N·D in {points.computed} of {len(points.loss)} points: not in the file"
        )
    elif {"N", "D", "C"} <= points.values.keys() and not 2 < points.flops_factor < 20:
        notes.append(
            f"C is {points.flops_factor:.3g}·N·D, not about 6·N·D: is it in FLOPs, and are N and D "
            "in single parameters and tokens?"
        )
    return ScalingFits(
        fits,
        chosen,
        fit_isoflop(points, bootstrap=bootstrap, seed=seed),
        points.flops_factor,
        None if compute is None else (float(compute.min()), float(compute.max())),
        tuple(notes),
    )


def _varies_alone(points: Points, law: Law) -> bool:
    """C = k·N·D varies with N and D, so it does not count beside them."""
    others = points.values.keys() - {*law.variables, "C", "S_min"}
    return all(np.ptp(np.log(points.values[name])) < 1e-9 for name in others)


def _find_doubts(fit: Fit, law: Law, points: Points) -> Iterator[str]:
    if law.variables == ("N", "D"):
        ratio = points.values["D"] / points.values["N"]
        factor = ratio.max() / ratio.min()
        if factor < MIN_RATIO_RANGE:
            yield (
                f"{law.name}: D/N varies by a factor of {factor:.3g} only, so the effects of N and "
                "D can hardly be separated; measure other ratios"
            )
    if fit.condition > MAX_CONDITION:
        yield (
            f"{law.name}: condition number {fit.condition:.3g}; the points hardly determine all "
            "constants, however small the residuals are"
        )
    if law is HOFFMANN and fit.values["E"] < _NO_LIMIT * points.loss.min():
        yield f"{law.name}: E is 0; these points show no loss below which it does not fall"
    if len(law.constants) == fit.points:
        yield f"{law.name}: as many constants as points, so there are no intervals"


def find_outliers(residuals: Sequence[float]) -> list[int]:
    """Indices of the residuals that are far from the others, the farthest first.

    The standard deviation is 1.4826 times the median distance from the median, which the outliers
    themselves hardly change. Residuals within delta of the Huber loss are none.
    """
    distance = np.abs(np.asarray(residuals) - np.median(residuals))
    limit = max(OUTLIER * 1.4826 * float(np.median(distance)), DELTA)
    return [int(index) for index in np.argsort(-distance) if distance[index] > limit]


def _name_outliers(fit: Fit, points: Points, indices: NDArray[np.intp]) -> Iterator[str]:
    found = find_outliers(fit.residuals) if fit.points >= _MIN_POINTS_FOR_OUTLIERS else []
    if not found:
        return
    named = []
    for index in found[:_NAMED_OUTLIERS]:
        point = indices[index]
        place = points.places[point] if points.places else f"point {point + 1}"
        above = np.expm1(fit.residuals[index])
        named.append(f"{place} (loss {points.loss[point]:.4g}, {above:+.2%} of the fit)")
    others = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
    yield (
        f"{fit.law}: {len(found)} of {fit.points} points are outliers, by more than {OUTLIER:g} "
        f"robust standard deviations: {'; '.join(named)}{others}. Look at these runs; "
        "--leave-out-highest leaves out the highest losses"
    )


def write_fits(fits: ScalingFits, path: Path, source: Mapping[str, Any]) -> None:
    """Writes the fits as JSON, with every bootstrap draw, and with `source` as it is."""
    laws = {
        name: {
            "formula": LAWS[name].formula,
            "constants": {key: asdict(value) for key, value in fit.constants.items()},
            "points": fit.points,
            "objective": fit.objective,
            "rms_log_residual": fit.rms,
            "condition": fit.condition,
            "indices": fits.indices[name],
            "residuals": fit.residuals,
            "draws": fit.draws,
        }
        for name, fit in fits.fits.items()
    }
    content = {
        "format": FORMAT_VERSION,
        **source,
        "flops_factor": fits.flops_factor,
        "compute_range": fits.compute_range,
        "notes": fits.notes,
        "laws": laws,
        "isoflop": None if fits.isoflop is None else asdict(fits.isoflop),
    }
    files.write_atomically(path, json_files.encode(content, indent=1))


def read_fits(path: Path) -> ScalingFits:
    """Reads what `write_fits` wrote. Raises UsageError for any other file."""
    with files.explain_os_errors(path):
        data = json_files.decode(path.read_bytes(), str(path))
    try:
        if data["format"] != FORMAT_VERSION:
            raise ValueError
        laws = data["laws"]
        fits = {
            name: Fit(
                name,
                {key: _read_interval(value) for key, value in law["constants"].items()},
                tuple(map(tuple, law["draws"])),
                law["points"],
                law["objective"],
                tuple(law["residuals"]),
                law["condition"],
            )
            for name, law in laws.items()
            if name in LAWS and {*law["constants"]} == {*LAWS[name].constants}
        }
        return ScalingFits(
            fits,
            {name: tuple(laws[name]["indices"]) for name in fits},
            _read_isoflop(data["isoflop"]),
            data["flops_factor"],
            data["compute_range"] and tuple(data["compute_range"]),
            tuple(data["notes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        cure = "Write one with gptft scale fit FILE -o fit.json."
        raise UsageError("not a file of fits", where=str(path), cure=cure) from None


def _read_isoflop(data: Any) -> IsoFlop | None:
    if data is None:
        return None
    profiles = (
        Profile(item["compute"], tuple(item["indices"]), tuple(item["curve"]), item["refused"])
        for item in data["profiles"]
    )
    exponent, factor = (data[key] and _read_interval(data[key]) for key in ("exponent", "factor"))
    return IsoFlop(tuple(profiles), exponent, factor)


def _read_interval(data: Mapping[str, Any]) -> Interval:
    """An interval that is not known is null in JSON."""
    value, low, high = (
        math.nan if data[key] is None else data[key] for key in ("value", "low", "high")
    )
    return Interval(value, low, high)
