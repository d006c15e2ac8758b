"""The learning curve of a study: scores against the number of labels, as a figure."""

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from finetune.comparison.table import Row, Table
from finetune.storage import files
from task_formats import UsageError

X_LABEL = "labelled examples (a fraction f of them is trained on for epochs / √f)"


class Series(NamedTuple):
    """Rows of the table that form one line of the figure, by number of labels."""

    name: str
    rows: list[Row]


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
    for series, style in zip(select_series(table), ("o-", "s--"), strict=False):
        summaries = [row.scores[metric] for row in series.rows]
        axes.errorbar(
            [row.labels for row in series.rows],
            [summary.median for summary in summaries],
            [
                [summary.median - summary.low for summary in summaries],
                [summary.high - summary.median for summary in summaries],
            ],
            fmt=style,
            capsize=3,
            linewidth=1.5,
            label=series.name,
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


def select_series(table: Table) -> list[Series]:
    """Returns fine-tuning (with the λ of the smaller fractions) and few-shot prompting."""
    finetuned = [row for row in table.rows if row.kind == "finetune"]
    value = next((row.lm_coefficient for row in finetuned if row.fraction < 1), None)
    few_shot = [row for row in table.rows if row.kind == "prompt" and row.labels]
    curve = [row for row in finetuned if row.lm_coefficient == value]
    series = [] if value is None else [Series(f"fine-tuned, λ = {value:g}", curve)]
    series.append(Series("few-shot", few_shot))
    return [Series(name, sorted(rows, key=lambda r: r.labels)) for name, rows in series if rows]
