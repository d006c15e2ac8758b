"""How well a law that is fitted to small runs predicts the large ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from finetune.scaling.fitting import Fit, Interval, fit_law, get_law
from finetune.scaling.laws import HOFFMANN, KAPLAN
from finetune.scaling.points import Points
from task_formats import UsageError


@dataclass(frozen=True)
class Prediction:
    """A run that was not fitted. `above` is measured / predicted - 1."""

    place: str
    measured: float
    predicted: Interval
    above: float


@dataclass(frozen=True)
class Extrapolation:
    """A law fitted to the runs with the least compute, against the others.

    Attributes:
        law: Name of the law.
        constants: Of the fit to the small runs.
        points: Number of points that were fitted.
        compute: Largest C among them, in FLOPs.
        predictions: The other points, in the file's order.
    """

    law: str
    constants: dict[str, Interval]
    points: int
    compute: float
    predictions: tuple[Prediction, ...]

    @property
    def rms(self) -> float:
        """Root mean square of the relative errors."""
        return float(np.sqrt(np.mean([found.above**2 for found in self.predictions])))

    @property
    def bias(self) -> float:
        """Mean of the relative errors; above 0 the losses are higher than predicted."""
        return float(np.mean([found.above for found in self.predictions]))

    @property
    def inside(self) -> int:
        """Predictions whose interval has the measured loss."""
        return sum(
            found.predicted.low <= found.measured <= found.predicted.high
            for found in self.predictions
        )


def extrapolate(
    points: Points, fraction: float = 0.5, *, bootstrap: int = 400, seed: int = 0
) -> list[Extrapolation]:
    """Fits L(N, D) to a fraction of the points, those with the least C, and predicts the others.

    Raises:
        UsageError: N, D or C is missing, or the fraction leaves too few points for a law.
    """
    if not {"N", "D", "C"} <= points.values.keys():
        cure = "Give a table with N and D."
        raise UsageError("an extrapolation needs N, D and C", where="--extrapolate", cure=cure)
    order = np.argsort(points.values["C"], kind="stable")
    count = round(fraction * len(order))
    small, large = np.sort(order[:count]), np.sort(order[count:])
    if not 0 < count < len(order):
        what = f"{fraction:g} of {len(order)} points leaves none to fit or none to predict"
        raise UsageError(what, where="--extrapolate", cure="Give a fraction such as 0.5.")
    found = []
    for law in (KAPLAN, HOFFMANN):
        values = points.matrix(law.variables)
        fit = fit_law(law, values[small], points.loss[small], bootstrap=bootstrap, seed=seed)
        predictions = []
        for index in large:
            place = dict(zip(law.variables, map(float, values[index]), strict=True))
            predicted = _predict(fit, place)
            measured = float(points.loss[index])
            name = points.places[index] if points.places else f"point {index + 1}"
            predictions.append(
                Prediction(name, measured, predicted, measured / predicted.value - 1)
            )
        compute = float(points.values["C"][small].max())
        found.append(Extrapolation(law.name, fit.constants, count, compute, tuple(predictions)))
    return found


def _predict(fit: Fit, place: Mapping[str, float]) -> Interval:
    law = get_law(fit)
    return fit.interval(lambda constants: law.loss(constants, **place))
