"""The learning curve of a study: scores against the number of labels, as a figure."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from finetune.comparison.table import Row, Table
from finetune.storage import files
from task_formats import UsageError

X_LABEL = "labelled examples (a fraction f of them is trained on for epochs / √f)"


def check_matplotlib() -> None:
    """Raises UsageError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            "figures need matplotlib, which is not installed",
            cure="pip install 'gptft[plots]', or leave the figure out with --no-plot.",
        )


def draw_curve(table: Table, path: Path) -> None:
    """Writes a PNG of the first metric over the number of labels, on a logarithmic axis.

    Labels are the rows that fine-tuning trained on, or the demonstrations that fitted before a
    question. Methods without labels (zero-shot) and the majority class are horizontal lines. The
    same table gives the same file.

    Raises:
        UsageError: matplotlib is not installed.
    """
    check_matplotlib()
    # Without pyplot: no global state, no display, nothing to close.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
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
    axes.set(xscale="log", xlabel=X_LABEL, ylabel=metric)
    axes.set_title(table.about, fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    content = BytesIO()
    # No version or date in the file.
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    files.write_atomically(path, content.getvalue())


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
