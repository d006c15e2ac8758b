"""The table of a study: medians and intervals over seeds, and collapsed runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

from finetune.comparison.cells import Cell, Kind
from finetune.evaluation.metrics import selection_value
from finetune.recipe.schema import Recipe
from finetune.storage import files, json_files
from task_formats import UsageError

NOTES = (
    "Several seeds: the median, and the lowest and highest score. (With five seeds this interval "
    "contains the true median in 15 of 16 studies, whatever the distribution.)",
    "A single untrained cell (majority class, zero-shot): its score, and a 95 % bootstrap "
    "confidence interval over rows. A single trained seed: its score only.",
    "Trained cells show their best epoch on the evaluation split, which is slightly optimistic. "
    "Collapsed seeds are no better than the majority class; checking for them needs that cell "
    "(--only majority).",
)
_CURVE_NOTE = (
    "A fraction f of the labels is trained on for epochs / √f, or where no number of epochs was "
    "given for the default of so many rows. Along the curve neither epochs nor updates are equal."
)


class CellResult(NamedTuple):
    """The result of a finished cell."""

    cell: Cell
    scores: dict[str, float]
    labels: float
    """Labelled examples used: training rows, or the mean number of demonstrations that fitted."""
    intervals: dict[str, list[float]] | None
    seconds: float
    evaluation_fingerprint: str
    """Fingerprint of the rows that were scored."""
    precision: str | None = None
    """Number format of prompting; None for other cells."""

    @classmethod
    def from_json(cls, cell: Cell, result: Mapping[str, Any]) -> "CellResult":
        """From the content of a cell's result.json."""
        scores = next(iter(result["scores"].values()))
        made_with = result["made_with"]
        return cls(
            cell,
            {str(name): float(scores[name]) for name in cell.recipe.task.metrics},
            result["labels"] if "labels" in result else made_with["rows"]["train"],
            result.get("intervals"),
            float(result["seconds"]),
            made_with["data"]["evaluate"],
            result.get("precision"),
        )


class ScoreSummary(NamedTuple):
    """One metric of one method."""

    median: float
    low: float
    high: float
    interval_over: Literal["seeds", "rows"]
    """Low and high are the lowest and highest seed, or a 95 % bootstrap interval over rows."""
    values: tuple[float, ...]

    def format_interval(self) -> str:
        """The interval as text; empty for a single seed."""
        single = self.interval_over == "seeds" and len(self.values) == 1
        return "" if single else f"{self.low:.4f} to {self.high:.4f}"


class Row(NamedTuple):
    """A method: the cells that differ only in their seed."""

    method: str
    kind: Kind
    lm_coefficient: float | None
    fraction: float
    labels: float
    """Labelled examples per cell, on average."""
    shots: int
    """Requested demonstrations; fewer may have fitted."""
    seeds: tuple[int, ...]
    scores: dict[str, ScoreSummary]
    collapsed: tuple[int, ...] | None
    """Seeds of trained cells that are no better than the majority class; None if that cell is
    missing."""
    seconds: float
    """Of all cells together."""


class Table(NamedTuple):
    """The methods of a study in planned order."""

    about: str
    base: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = NOTES

    @property
    def has_curve(self) -> bool:
        """Whether fine-tuning was done with several numbers of labels."""
        return len({row.labels for row in self.rows if row.kind == "finetune"}) > 1


def build_table(recipe: Recipe, results: Sequence[CellResult]) -> Table:
    """Builds the table of finished cells.

    Raises:
        UsageError: The cells were scored on different rows.
    """
    for result in results:
        if result.evaluation_fingerprint != results[0].evaluation_fingerprint:
            what = f"{results[0].cell.name} and {result.cell.name} were scored on different rows"
            cure = "The data have changed; repeat the older cell with --overwrite."
            raise UsageError(what, cure=cure)
    majority = next((result for result in results if result.cell.kind == "majority"), None)
    methods: dict[str, list[CellResult]] = {}
    for result in results:
        methods.setdefault(result.cell.method, []).append(result)
    rows = tuple(_build_row(recipe, cells, majority) for cells in methods.values())
    notes = NOTES + ((_CURVE_NOTE,) if any(row.fraction < 1 for row in rows) else ())
    if precisions := sorted({result.precision for result in results if result.precision}):
        notes += (
            f"Prompting computed in {' and '.join(precisions)}; with --precision fp32 "
            "log-likelihoods equal those of transformers to 1e-4.",
        )
    return Table(recipe.about, recipe.base.path, tuple(recipe.task.metrics), rows, notes)


def _build_row(recipe: Recipe, results: Sequence[CellResult], majority: CellResult | None) -> Row:
    cell = results[0].cell
    return Row(
        cell.method,
        cell.kind,
        cell.recipe.train.lm_coefficient if cell.trains else None,
        cell.fraction,
        fmean(result.labels for result in results),
        cell.shots,
        tuple(result.cell.seed for result in results),
        {metric: _summarize(metric, results) for metric in recipe.task.metrics},
        _find_collapsed(recipe, results, majority) if cell.trains else (),
        sum(result.seconds for result in results),
    )


def _summarize(metric: str, results: Sequence[CellResult]) -> ScoreSummary:
    values = tuple(result.scores[metric] for result in results)
    intervals = results[0].intervals
    if len(results) == 1 and intervals:
        low, high = intervals[metric]
        return ScoreSummary(values[0], low, high, "rows", values)
    return ScoreSummary(median(values), min(values), max(values), "seeds", values)


def _find_collapsed(
    recipe: Recipe, results: Sequence[CellResult], majority: CellResult | None
) -> tuple[int, ...] | None:
    def value(result: CellResult) -> float:
        return selection_value(result.scores, recipe.task.metrics, recipe.task.select)

    if majority is None:
        return None
    return tuple(r.cell.seed for r in results if value(r) <= value(majority))


def write_table(folder: Path, table: Table) -> None:
    """Writes table.md, and table.json with the keys and kinds of its first version."""
    rows = []
    for row in table.rows:
        values = {"arm": row.method, **row._asdict()}
        del values["method"]
        values["kind"] = {"prompt": "ask", "finetune": "tuned"}.get(row.kind, row.kind)
        values["scores"] = {
            metric: dict(zip(("median", "low", "high", "of", "values"), summary, strict=True))
            for metric, summary in row.scores.items()
        }
        rows.append(values)
    content = json_files.encode({**table._asdict(), "rows": rows}, indent=2)
    files.write_atomically(folder / "table.json", content + b"\n")
    files.write_atomically(folder / "table.md", write_markdown(table))


def write_markdown(table: Table) -> str:
    """Returns the table and its notes as Markdown."""
    lines = [f"# {table.about}", "", f"Base: {table.base}", ""]
    header = ["", "labels", "seeds", *(f"{metric} | interval" for metric in table.metrics)]
    lines += [f"| {' | '.join([*header, 'collapsed'])} |"]
    lines += ["|" + "---|" * (4 + 2 * len(table.metrics))]
    lines += [f"| {' | '.join(format_row(row, table.metrics))} |" for row in table.rows]
    return "\n".join([*lines, "", *(f"* {note}" for note in table.notes), ""])


def format_row(row: Row, metrics: Sequence[str]) -> list[str]:
    """Returns the cells of a row: method, labels, seeds, two for each metric, collapsed seeds."""
    summaries = [row.scores[metric] for metric in metrics]
    numbers = [text for s in summaries for text in (f"{s.median:.4f}", s.format_interval())]
    seeds = str(len(row.seeds)) if summaries[0].interval_over == "seeds" else ""
    whole = row.labels == int(row.labels)
    labels = f"{int(row.labels):,}" if whole else f"{row.labels:.1f}"
    labels += f" of {row.shots}" if row.labels < row.shots else ""
    if row.collapsed is None:
        collapsed = "not checked"
    else:
        collapsed = f"{len(row.collapsed)} of {len(row.seeds)}" if row.collapsed else ""
    return [row.method, labels, seeds, *numbers, collapsed]
