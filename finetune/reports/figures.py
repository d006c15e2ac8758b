"""Figures of a report, as SVG whose colours are those of the page."""

import hashlib
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from io import StringIO
from typing import Any, Literal, NamedTuple

import numpy as np

from finetune.evaluation.metrics import METRICS
from finetune.evaluation.statistics import Calibration, ThresholdCurve
from finetune.optional_packages import require_package
from finetune.reports.evaluated_run import EvaluatedRun, History, Predictions

MAX_POINTS = 1000
"""Points of a scatter plot."""
_MAX_LINE_POINTS = 200
_SIZE = (4.2, 2.9)
_NUM_SERIES = 6
_COLORS = {f"#00000{k + 1}": f"var(--{name})" for k, name in enumerate(("ink", "muted", "grid"))}
_COLORS |= {f"#00001{k}": f"var(--series-{k + 1})" for k in range(_NUM_SERIES)}
"""Colours in matplotlib to CSS variables of the page."""
_INK, _MUTED, _GRID, *_SERIES = _COLORS
_DASHES: tuple[tuple[float, ...], ...] = (
    (), (5, 2), (7, 2, 1.5, 2), (1.5, 1.5), (9, 3), (7, 2, 1.5, 2, 1.5, 2),
)  # fmt: skip
"""Lengths of strokes and gaps in widths of the line, for each series."""
_LINE_WIDTH = 1.5
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gptft",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


class LegendEntry(NamedTuple):
    """A line of a legend. The page shows legends as text, which wraps."""

    name: str
    color: str
    mark: Literal["line", "point", "dot", "area"] = "line"
    """A line, a line with points, points alone, or a filled area."""
    dashes: str = ""
    """The stroke-dasharray of a line."""


class Drawing(NamedTuple):
    """A figure of the page."""

    svg: str
    legend: list[LegendEntry]


class Line(NamedTuple):
    """One line of a figure."""

    name: str
    """Empty for a line that the legend leaves out."""
    x: Sequence[float]
    y: Sequence[float]
    series: int
    """Decides the colour, and the dashes of a line without points."""
    points: bool = False


def check_matplotlib() -> None:
    """Raises UsageError if matplotlib is not installed."""
    require_package("matplotlib", "plots", "a report")


def draw_lines(
    lines: Sequence[Line], xlabel: str, ylabel: str, *, best: float | None = None
) -> Drawing:
    """Draws lines over updates; `best` marks the update of the saved model."""

    def draw(axes: Any) -> None:
        for line in lines:
            dashes = _line_dashes(line)
            axes.plot(
                line.x, line.y, color=_SERIES[line.series % _NUM_SERIES], linewidth=_LINE_WIDTH,
                linestyle=(0, dashes) if dashes else "-", marker="o" if line.points else "",
                markersize=4,
            )  # fmt: skip
        if best is not None:
            axes.axvline(best, color=_MUTED, linewidth=1, linestyle=":")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if xlabel == "update":
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)

    legend = [_describe_line(line) for line in lines if line.name]
    if best is not None:
        legend.append(LegendEntry("saved model", _COLORS[_MUTED], dashes="1.5 2"))
    return Drawing(_render(draw, f"{ylabel} by {xlabel}"), legend)


def _line_dashes(line: Line) -> tuple[float, ...]:
    return () if line.points else _DASHES[line.series % len(_DASHES)]


def _describe_line(line: Line) -> LegendEntry:
    dashes = " ".join(f"{_LINE_WIDTH * length:g}" for length in _line_dashes(line))
    color = _COLORS[_SERIES[line.series % _NUM_SERIES]]
    return LegendEntry(line.name, color, "point" if line.points else "line", dashes)


def draw_reliability(calibration: Calibration) -> Drawing:
    """Draws accuracy over confidence; the size of a point is its share of the rows."""
    bins = calibration.bins
    total = sum(group.rows for group in bins)

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=1, linestyle=":")
        confidence, accuracy = [b.confidence for b in bins], [b.accuracy for b in bins]
        axes.vlines(confidence, confidence, accuracy, color=_SERIES[1], linewidth=1.5)
        sizes = [12 + 120 * group.rows / total for group in bins]
        axes.scatter(confidence, accuracy, s=sizes, color=_SERIES[0], zorder=3)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="accuracy")

    legend = [
        LegendEntry("calibrated", _COLORS[_MUTED], dashes="1.5 2"),
        LegendEntry("a bin", _COLORS[_SERIES[0]], "dot"),
        LegendEntry("gap", _COLORS[_SERIES[1]]),
    ]
    return Drawing(_render(draw, "reliability diagram"), legend)


def draw_thresholds(curve: ThresholdCurve) -> Drawing:
    """Draws accuracy, precision, recall and F1 over the threshold."""
    columns = {
        "F1": curve.f1,
        "precision": curve.precision,
        "recall": curve.recall,
        "accuracy": curve.accuracy,
    }
    threshold = curve.threshold.tolist()
    lines = [Line(name, threshold, y.tolist(), k) for k, (name, y) in enumerate(columns.items())]
    return draw_lines(lines, "threshold", "score")


def draw_score_histogram(rows: Predictions) -> Drawing:
    """Draws the distributions of true and predicted scores."""

    def draw(axes: Any) -> None:
        edges = np.histogram_bin_edges(np.concatenate([rows.gold, rows.predicted]), bins=20)
        for values, k in ((rows.gold, 1), (rows.predicted, 0)):
            axes.hist(
                values, edges, histtype="stepfilled", facecolor=(_SERIES[k], 0.25),
                edgecolor=_SERIES[k], linewidth=1.2,
            )  # fmt: skip
        axes.set(xlabel="score", ylabel="rows")

    legend = [
        LegendEntry("label", _COLORS[_SERIES[1]], "area"),
        LegendEntry("predicted", _COLORS[_SERIES[0]], "area"),
    ]
    return Drawing(_render(draw, "histogram of scores"), legend)


def draw_scatter(rows: Predictions, max_points: int = MAX_POINTS) -> Drawing:
    """Draws predicted over true scores, of a random part of the rows if there are many."""
    shown = np.random.default_rng(0).permutation(len(rows.gold))[:max_points]

    def draw(axes: Any) -> None:
        everything = np.concatenate([rows.gold, rows.predicted])
        ends = [float(everything.min()), float(everything.max())]
        axes.plot(ends, ends, color=_MUTED, linewidth=1, linestyle=":")
        axes.plot(
            rows.gold[shown], rows.predicted[shown], color=_SERIES[0], linestyle="", marker="o",
            markersize=3, alpha=0.5, markeredgewidth=0,
        )  # fmt: skip
        axes.set(xlabel="label", ylabel="predicted")

    legend = [
        LegendEntry("row", _COLORS[_SERIES[0]], "dot"),
        LegendEntry("equal", _COLORS[_MUTED], dashes="1.5 2"),
    ]
    return Drawing(_render(draw, "predicted scores by label"), legend)


def draw_learning_curves(runs: Sequence[EvaluatedRun]) -> list[tuple[str, Drawing]]:
    """Draws losses and metrics by update.

    Returns:
        Caption and figure; none without a log.
    """
    histories = [
        (k, run, run.history)
        for k, run in enumerate(runs)
        if run.history and len(run.history.updates)
    ]
    if not histories:
        return []
    single, metrics = len(runs) == 1, runs[0].task.metrics
    # Errors have another scale than scores.
    metrics = tuple(name for name in metrics if METRICS[name].higher_is_better) or metrics
    best = runs[0].result.get("update") if single else None
    task_losses: list[Line] = []
    scores: list[Line] = []
    for k, run, history in histories:
        curve = thin_out(history.updates, history.task_loss)
        task_losses.append(Line("training" if single else run.name, *curve, k))
        if evaluated := _evaluation_line(history, "loss"):
            name, series = ("evaluation", 1) if single else ("", k)
            task_losses.append(Line(name, *evaluated, series, points=True))
        for n, metric in enumerate(metrics if single else metrics[:1]):
            if evaluated := _evaluation_line(history, metric):
                scores.append(Line(metric if single else run.name, *evaluated, k + n, points=True))
    caption = "Task loss" if single else "Task loss; points are evaluations"
    figures = [(caption, draw_lines(task_losses, "update", "task loss", best=best))]
    if scores:
        label = "score" if single and len(metrics) > 1 else metrics[0]
        drawing = draw_lines(scores, "update", label, best=best)
        figures.append(("Scores on the evaluation split", drawing))
    lm_losses = [
        Line("training" if single else run.name, *thin_out(history.updates, history.lm_loss), k)
        for k, run, history in histories
        if run.recipe.train.lm_coefficient > 0
    ]
    if lm_losses:
        drawing = draw_lines(lm_losses, "update", "LM loss")
        figures.append(("Language-model loss on the training rows", drawing))
    return figures


def _evaluation_line(history: History, metric: str) -> tuple[list[float], list[float]] | None:
    """Updates and values of one score."""
    points = [(update, scores.get(metric)) for update, scores in history.evaluations]
    known = [(float(update), value) for update, value in points if value is not None]
    return ([x for x, _ in known], [y for _, y in known]) if known else None


def thin_out(
    updates: np.ndarray, values: np.ndarray, points: int = _MAX_LINE_POINTS
) -> tuple[list[float], list[float]]:
    """Returns at most `points` means of consecutive updates and values, without NaN."""
    finite = np.isfinite(values)
    groups = min(points, int(finite.sum()))
    if not groups:
        return [], []
    parts = (np.array_split(array[finite], groups) for array in (updates, values))
    x, y = ([float(part.mean()) for part in array] for array in parts)
    return x, y


def _render(draw: Callable[[Any], None], label: str) -> str:
    """Calls `draw` with axes, and returns the figure as an <svg> element for an HTML page."""
    check_matplotlib()
    # Without pyplot: no global state, no display, nothing to close.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the texts, so glyphs that matplotlib's own font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(linewidth=0.6)
        draw(axes)
        output = StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(output.getvalue(), label)


def _for_page(document: str, label: str) -> str:
    """Turns an SVG document into a short <svg> element with the colours and font of the page."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#(\w+)[\")]", svg))
    # Ids must differ between the figures of a page.
    prefix = hashlib.sha256(svg.encode()).hexdigest()[:6]

    def shorten(match: re.Match[str]) -> str:
        tag = re.sub(r"#\d{6}", lambda color: _COLORS.get(color[0], color[0]), match[0])
        tag = re.sub(r"\s+", " ", tag)
        tag = re.sub(r"font-family: [^;]*; ", "", tag)
        tag = re.sub(r"(\.\d\d)\d+", r"\1", tag)  # Hundredths of a point are enough.
        tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
        tag = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", tag)
        return re.sub(r'(id="|#)(\w+)(?=[")])', rf"\1f{prefix}\2", tag)

    svg = re.sub(r"<[^>]*>", shorten, svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r">\s+<", "><", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
