"""A study's scores against the number of labels, as a figure."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune import files
from finetune.comparison.table import Row, Table
from task_formats import UsageError


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
    examples shown. What is given none (zero-shot) or does not learn (majority) is a line across.
    Raises UsageError without matplotlib.
    """
    check_plots()
    # Figures of their own, not pyplot's: nothing global, no screen, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.add_subplot()
    for name, rows, style in _lines(table):
        _draw_line(axes, name, rows, table.metrics[0], style)
    for row in table.rows:
        if row.kind == "majority" or row.labels == 0:
            value = row.scores[table.metrics[0]].median
            dots = ":" if row.kind == "majority" else "--"
            axes.axhline(value, label=row.arm, linewidth=1, color="gray", linestyle=dots)
    axes.set(xscale="log", xlabel="labelled examples", ylabel=table.metrics[0])
    axes.set_title(table.about, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with files.open_atomically(path) as file:
        # Without a version or date in it, the same table gives the same file.
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def _lines(table: Table) -> list[tuple[str, list[Row], str]]:
    """Arms that have several numbers of labels: a name, rows by number, and a line's style."""
    tuned = [row for row in table.rows if row.kind == "tuned"]
    parts = {row.lm_coefficient for row in tuned if row.fraction < 1}
    lines = [
        (f"fine-tuned, λ = {value:g}", [row for row in tuned if row.lm_coefficient == value], "o-")
        for value in sorted({row.lm_coefficient for row in tuned} & parts, key=str)
    ]
    shown = [row for row in table.rows if row.kind == "ask" and row.labels]
    lines += [("few-shot", shown, "s--")] if shown else []
    return [(name, sorted(rows, key=lambda row: row.labels), style) for name, rows, style in lines]


def _draw_line(axes: Any, name: str, rows: list[Row], metric: str, style: str) -> None:
    spreads = [row.scores[metric] for row in rows]
    middle = [spread.median for spread in spreads]
    below = [spread.median - spread.low for spread in spreads]
    above = [spread.high - spread.median for spread in spreads]
    labels = [row.labels for row in rows]
    axes.errorbar(labels, middle, [below, above], fmt=style, capsize=3, linewidth=1.5, label=name)
