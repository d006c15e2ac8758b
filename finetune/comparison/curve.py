"""The learning curve of a study: scores against the number of labels, as a figure."""

from io import BytesIO
from pathlib import Path
from typing import Any

from finetune.comparison.table import Row, Table
from finetune.optional_packages import require_package
from finetune.storage import files
from task_formats import UsageError

X_LABEL = "Labelled examples"
_TITLES = {"f1": "F1", "mse": "Mean squared error", "mae": "Mean absolute error", "ece": "ECE"}
"""Metrics whose name is no word."""
FORMATS = (".png", ".svg", ".pdf")


def check_matplotlib() -> None:
    """Raises UsageError if matplotlib is not installed."""
    otherwise = "leave the figure out with --no-plot."
    require_package("matplotlib", "plots", "a figure", otherwise=otherwise)


def check_figure_path(path: Path) -> None:
    """Raises UsageError if the suffix is not one of a figure."""
    if path.suffix.lower() not in FORMATS:
        cure = f"Use one of {', '.join(FORMATS)}."
        raise UsageError(f"{path.suffix or 'no suffix'} is not a format of figures", cure=cure)


def draw_curve(table: Table, path: Path) -> None:
    """Writes a figure of the first metric over the number of labels, on a logarithmic axis.

    The suffix of the path chooses PNG, SVG or PDF.

    Labels are the rows that fine-tuning trained on, or the demonstrations that fitted before a
    question. Methods without labels (zero-shot) and the majority class are horizontal lines. The
    same table gives the same file.

    Raises:
        UsageError: matplotlib is not installed, or the suffix is not one of these.
    """
    check_matplotlib()
    check_figure_path(path)
    import matplotlib

    # Without pyplot: no global state, no display, nothing to close.
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    figure = Figure(figsize=(6, 4), layout="constrained")  # Inches: the width of a page of text.
    axes: Any = figure.add_subplot()
    metric = table.metrics[0]
    for (name, rows), style in zip(select_series(table).items(), ("o-", "s--"), strict=False):
        summaries = [row.scores[metric] for row in rows]
        axes.errorbar(
            [row.labels for row in rows],
            [summary.median for summary in summaries],
            [
                [summary.median - summary.low for summary in summaries],
                [summary.high - summary.median for summary in summaries],
            ],
            fmt=style,
            capsize=3,
            linewidth=1.5,
            label=name,
        )
    for row in table.rows:
        if row.kind == "majority" or row.labels == 0:
            style = ":" if row.kind == "majority" else "--"
            value = row.scores[metric].median
            axes.axhline(value, label=row.method, linewidth=1, color="gray", linestyle=style)
    axes.set(xscale="log", xlabel=X_LABEL, ylabel=_name_axis(metric))
    # A tick at every number of labels: a logarithmic axis would have powers of ten.
    axes.set_xticks(sorted({row.labels for rows in select_series(table).values() for row in rows}))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(table.about, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content, kind = BytesIO(), path.suffix[1:].lower()
    # No version, date or random name in the file; text of an SVG stays text.
    stamps: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}
    stamps["pdf"] = {"CreationDate": None, "Producer": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "gptft", "svg.fonttype": "none"}):
        figure.savefig(content, format=kind, dpi=300, metadata=stamps[kind])
    files.write_atomically(path, content.getvalue())


def _name_axis(metric: str) -> str:
    """The name of a metric as words of an axis: "Macro F1"."""
    words = " ".join(_TITLES.get(word, word) for word in metric.split("_"))
    return _TITLES.get(metric, words[:1].upper() + words[1:])


def select_series(table: Table) -> dict[str, list[Row]]:
    """Returns name and rows of each line, by number of labels: fine-tuning and few-shot prompting.

    Fine-tuning is with the λ of the smaller fractions.
    """
    finetuned = [row for row in table.rows if row.kind == "finetune"]
    value = next((row.lm_coefficient for row in finetuned if row.fraction < 1), None)
    series = {"few-shot": [row for row in table.rows if row.kind == "prompt" and row.labels]}
    if value is not None:
        curve = [row for row in finetuned if row.lm_coefficient == value]
        series = {f"fine-tuned, λ = {value:g}": curve, **series}
    return {name: sorted(rows, key=lambda row: row.labels) for name, rows in series.items() if rows}
