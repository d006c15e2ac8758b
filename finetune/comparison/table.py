"""What a study has found, as a table: medians and intervals over seeds, collapsed runs flagged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

from finetune.comparison.cells import Cell
from finetune.recipe.schema import Recipe
from finetune.storage import files
from finetune.storage import json_files as json_text
from finetune.training.progress import selection_value
from task_formats import UsageError

Kind = Literal["majority", "ask", "scratch", "tuned"]

NOTES = (
    "Of several seeds the median, from the lowest to the highest. (Of five seeds, that interval "
    "holds the true median in 15 of 16 studies, whatever the distribution.)",
    "Of a single cell that was not trained (majority class, zero-shot) its score, and 95 % of "
    "bootstrap draws of the evaluation rows; of a single seed that was, its score alone.",
    "Trained cells show their best epoch on the evaluation split, so they flatter themselves a "
    "little; collapsed ones are no better than the majority class, which has to be done (--only "
    "majority) for them to be checked.",
)
"""What has to be known to read a table."""
_CURVE = (
    "A part f of the labels is trained on for epochs / √f: few labels are read more often, so "
    "along the curve neither epochs nor updates are equal."
)


class CellResult(NamedTuple):
    """What a cell has found."""

    cell: Cell
    scores: dict[str, float]
    labels: float
    """Labelled examples that went into it: rows trained on, or solved examples that fitted before
    a question, on average."""
    intervals: dict[str, list[float]] | None
    seconds: float
    evaluated: str
    """The fingerprint of the rows it was scored on."""
    precision: str | None = None
    """What it was asked in."""

    @classmethod
    def of(cls, cell: Cell, result: Mapping[str, Any]) -> "CellResult":
        """From a cell's result.json."""
        scores = next(iter(result["scores"].values()))
        wanted = {str(name): float(scores[name]) for name in cell.recipe.task.metrics}
        labels = result["labels"] if "labels" in result else result["made_with"]["rows"]["train"]
        seconds, evaluated = float(result["seconds"]), result["made_with"]["data"]["evaluate"]
        intervals, precision = result.get("intervals"), result.get("precision")
        return cls(cell, wanted, labels, intervals, seconds, evaluated, precision)


class ScoreSummary(NamedTuple):
    """A score of an arm."""

    median: float
    low: float
    high: float
    of: Literal["seeds", "rows"]
    """Low and high: the lowest and highest seed, or 95 % of bootstrap draws of the rows."""
    values: tuple[float, ...]

    def say_interval(self) -> str:
        """From low to high; nothing where one seed is all there is."""
        alone = self.of == "seeds" and len(self.values) == 1
        return "" if alone else f"{self.low:.4f} to {self.high:.4f}"


class Row(NamedTuple):
    """An arm: cells that differ in their seed alone."""

    arm: str
    kind: Kind
    lm_coefficient: float | None
    fraction: float
    labels: float
    """What went into a cell, on average."""
    shots: int
    """Solved examples that were asked with; fewer may have fitted."""
    seeds: tuple[int, ...]
    scores: dict[str, ScoreSummary]
    collapsed: tuple[int, ...] | None
    """Seeds of trained cells that are no better than the majority class; None where that is not
    known, as its cell is not done."""
    seconds: float
    """Of all its cells."""


class Table(NamedTuple):
    """A task's arms, in the order they were planned."""

    about: str
    base: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = NOTES

    @property
    def curves(self) -> bool:
        """Whether fine-tuning was tried with several numbers of labels."""
        return len({row.labels for row in self.rows if row.kind == "tuned"}) > 1


def build_table(recipe: Recipe, found: Sequence[CellResult]) -> Table:
    """The table of some finished cells. UsageError where they were scored on different rows."""
    _check_rows(found)
    floor = next((one for one in found if one.cell.work == "majority"), None)
    arms: dict[str, list[CellResult]] = {}
    for one in found:
        arms.setdefault(one.cell.arm, []).append(one)
    rows = tuple(_row(recipe, arm, cells, floor) for arm, cells in arms.items())
    notes = _notes(rows, found)
    return Table(recipe.about, recipe.base.path, tuple(recipe.task.metrics), rows, notes)


def _notes(rows: Sequence[Row], found: Sequence[CellResult]) -> tuple[str, ...]:
    """What has to be known of these cells."""
    curve = [_CURVE] if any(row.fraction < 1 for row in rows) else []
    precisions = sorted({one.precision for one in found if one.precision})
    asked = f"Few-shot cells were asked in {' and '.join(precisions)}; --precision fp32 gives "
    asked += "transformers' own log-likelihoods to 1e-4."
    return (*NOTES, *curve, *([asked] if precisions else []))


def _check_rows(found: Sequence[CellResult]) -> None:
    for one in found:
        if one.evaluated != found[0].evaluated:
            raise UsageError(
                f"the cells {found[0].cell.name} and {one.cell.name} were scored on different rows",
                cure="The data have changed since: --overwrite the older one.",
            )


def _row(recipe: Recipe, arm: str, cells: Sequence[CellResult], floor: CellResult | None) -> Row:
    first = cells[0].cell
    trained = first.work == "train"
    return Row(
        arm,
        _kind(first),
        first.recipe.train.lm_coefficient if trained else None,
        first.fraction,
        fmean(one.labels for one in cells),
        first.shots,
        tuple(one.cell.seed for one in cells),
        {metric: _spread(metric, cells) for metric in recipe.task.metrics},
        _find_collapsed(recipe, cells, floor) if trained else (),
        sum(one.seconds for one in cells),
    )


def _kind(cell: Cell) -> Kind:
    if cell.work == "train":
        return "tuned" if cell.tuned else "scratch"
    return cell.work


def _spread(metric: str, cells: Sequence[CellResult]) -> ScoreSummary:
    values = tuple(one.scores[metric] for one in cells)
    bounds = cells[0].intervals
    if len(cells) == 1 and bounds:
        low, high = bounds[metric]
        return ScoreSummary(values[0], low, high, "rows", values)
    return ScoreSummary(median(values), min(values), max(values), "seeds", values)


def _find_collapsed(
    recipe: Recipe, cells: Sequence[CellResult], floor: CellResult | None
) -> tuple[int, ...] | None:
    """Seeds of trained cells that are worth no more than the answer that needs no model."""
    if floor is None:
        return None
    guessed = selection_value(recipe.task, floor.scores)
    return tuple(
        one.cell.seed for one in cells if selection_value(recipe.task, one.scores) <= guessed
    )


def write_table(folder: Path, table: Table) -> None:
    """Writes table.json and table.md."""
    content = {**table._asdict(), "rows": [row._asdict() for row in table.rows]}
    files.write_atomically(folder / "table.json", json_text.encode(content, indent=2) + b"\n")
    files.write_atomically(folder / "table.md", write_markdown(table))


def write_markdown(table: Table) -> str:
    """The table as Markdown, and below it what has to be known to read it."""
    lines = [f"# {table.about}", "", f"Base: {table.base}", ""]
    header = ["", "labels", "seeds", *(f"{metric} | interval" for metric in table.metrics)]
    lines += [f"| {' | '.join([*header, 'collapsed'])} |"]
    lines += ["|" + "---|" * (4 + 2 * len(table.metrics))]
    lines += [f"| {' | '.join(format_row(row, table.metrics))} |" for row in table.rows]
    return "\n".join([*lines, "", *(f"* {note}" for note in table.notes), ""])


def format_row(row: Row, metrics: Sequence[str]) -> list[str]:
    """A row as texts: arm, labels, seeds, two for every metric, and the collapsed ones."""
    spreads = [row.scores[metric] for metric in metrics]
    numbers = [
        text for spread in spreads for text in (f"{spread.median:.4f}", spread.say_interval())
    ]
    seeds = str(len(row.seeds)) if spreads[0].of == "seeds" else ""
    whole = row.labels == int(row.labels)
    labels = f"{int(row.labels):,}" if whole else f"{row.labels:.1f}"
    labels += f" of {row.shots}" if row.labels < row.shots else ""
    return [row.arm, labels, seeds, *numbers, _flag(row)]


def _flag(row: Row) -> str:
    if row.collapsed is None:
        return "not checked"
    return f"{len(row.collapsed)} of {len(row.seeds)}" if row.collapsed else ""
