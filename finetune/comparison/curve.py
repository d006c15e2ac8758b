"""A study's scores against the number of labels, as a figure."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from finetune.comparison.table import Row, Table
from finetune.storage import files
from task_formats import UsageError

AXIS = "labelled examples (a part f of them is trained on for epochs / √f)"
"""Labels and epochs differ along the curve."""


class Line(NamedTuple):
    """Arms that belong together, by their number of labels."""

    name: str
    rows: list[Row]


def check_plots() -> None:
    """UsageError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            "figures need matplotlib, which is not installed",
            cure="pip install 'gptft[plots]', or leave the figure out with --no-plot.",
        )


def draw_curve(table: Table, path: Path) -> None:
    """Writes a PNG: the first metric of fine-tuning and of few-shot over labelled examples.

    Both stand over the labels they were given, on a logarithmic axis: rows trained on, or solved
    examples that fitted. What is given none (zero-shot) or does not learn (majority) is a line
    across. Raises UsageError without matplotlib.
    """
    check_plots()
    # Figures of their own, not pyplot's: nothing global, no screen, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.add_subplot()
    for line, style in zip(find_lines(table), ("o-", "s--"), strict=False):
        _draw_line(axes, line, table.metrics[0], style)
    for row in table.rows:
        if row.kind == "majority" or row.labels == 0:
            value = row.scores[table.metrics[0]].median
            dots = ":" if row.kind == "majority" else "--"
            axes.axhline(value, label=row.arm, linewidth=1, color="gray", linestyle=dots)
    axes.set(xscale="log", xlabel=AXIS, ylabel=table.metrics[0])
    axes.set_title(table.about, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with files.open_atomically(path) as file:
        # Without a version or date in it, the same table gives the same file.
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def find_lines(table: Table) -> list[Line]:
    """The arms that are given labels, by their number: fine-tuning, then few-shot."""
    tuned = [row for row in table.rows if row.kind == "tuned"]
    value = next((row.lm_coefficient for row in tuned if row.fraction < 1), None)
    shown = [row for row in table.rows if row.kind == "ask" and row.labels]
    parts = [row for row in tuned if row.lm_coefficient == value]
    lines = [] if value is None else [Line(f"fine-tuned, λ = {value:g}", parts)]
    lines.append(Line("few-shot", shown))
    return [Line(name, sorted(rows, key=lambda row: row.labels)) for name, rows in lines if rows]


def _draw_line(axes: Any, line: Line, metric: str, style: str) -> None:
    spreads = [row.scores[metric] for row in line.rows]
    middle = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    axes.errorbar(
        [row.labels for row in line.rows],
        middle,
        [below, above],
        fmt=style,
        capsize=3,
        linewidth=1.5,
        label=line.name,
    )
