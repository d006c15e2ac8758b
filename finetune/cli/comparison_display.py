"""Displays a comparison: a line for each finished cell, a status line, and the table."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.cli.run_display import RunProgress, format_scores, format_time, make_note
from finetune.comparison import CellFinished, CellStarted
from finetune.comparison import Table as ComparisonTable
from finetune.comparison.table import format_row
from finetune.training.events import Event, Notice
from finetune.training.loop import Step


def display_comparison(events: Iterable[CellStarted | CellFinished | Event], out: Console) -> None:
    """Displays the events of a comparison as they come."""
    progress, name = RunProgress(), ""
    with out.status(Text(" preparing")) as status:
        for event in events:
            match event:
                case CellStarted():
                    progress = RunProgress()
                    name = f"{event.cell.name} ({event.number} of {event.cells})"
                    status.update(Text(f" {name}"))
                case CellFinished():
                    out.print(_describe_cell(event), soft_wrap=True)
                case Notice():
                    out.print(make_note(event.text), soft_wrap=True)
                case _:
                    progress.add(event)
            if isinstance(event, Step):
                best = f"  best {format_scores(progress.best.scores)}" if progress.best else ""
                update = f"update {progress.update}/{progress.updates}"
                status.update(Text(f" {name}  {update}  {progress.time_left}{best}"))


def _describe_cell(event: CellFinished) -> Text:
    width = len(f"{event.cells}")
    duration = "already done" if event.reused else format_time(event.result.seconds)
    return Text.assemble(
        (f"{event.number:>{width}}/{event.cells}  ", "dim"),
        f"{event.result.cell.name:<28} ",
        (format_scores(event.result.scores), "green"),
        (f"  {duration}", "dim"),
    )


def make_comparison_table(comparison: ComparisonTable) -> Table:
    """A row for each method, two columns for each metric: the median and its interval."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", style="cyan")
    table.add_column("labels", justify="right")
    table.add_column("seeds", justify="right")
    for metric in comparison.metrics:
        table.add_column(Text(metric), justify="right")
        table.add_column("interval")
    table.add_column("collapsed", style="yellow")
    for row in comparison.rows:
        table.add_row(*map(Text, format_row(row, comparison.metrics)))
    return table
