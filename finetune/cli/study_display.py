"""A study on the screen: a line per cell, a status while one is worked on, and the table."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table as Grid
from rich.text import Text

from finetune.cli.run_status import Standing, say_scores, say_time
from finetune.comparison import CellFinished, CellStarted, Table
from finetune.comparison.table import format_row
from finetune.training.events import Evaluated, Event, Notice, Started
from finetune.training.loop import Step


def follow_study(happening: Iterable[CellStarted | CellFinished | Event], out: Console) -> None:
    """Shows a study to its end."""
    standing, name = Standing(), ""
    with out.status(Text(" getting ready")) as status:
        for event in happening:
            match event:
                case CellStarted():
                    standing = Standing()
                    name = f"{event.cell.name} ({event.number} of {event.cells})"
                    status.update(Text(f" {name}"))
                case CellFinished():
                    out.print(_done(event), soft_wrap=True)
                case Notice():
                    out.print(Text.assemble(("note: ", "yellow"), event.text), soft_wrap=True)
                case Started():
                    standing.start(event)
                case Step():
                    standing.take(event)
                    _show(status, name, standing)
                case Evaluated():
                    standing.evaluate(event)


def _show(status: Status, name: str, standing: Standing) -> None:
    done = f"update {standing.update}/{standing.updates}"
    best = f"  best {say_scores(standing.best.scores)}" if standing.best else ""
    status.update(Text(f" {name}  {done}  {say_time(standing.seconds_left)} left{best}"))


def _done(event: CellFinished) -> Text:
    found = event.found
    width = len(f"{event.cells}")
    how = "done before" if event.read else say_time(found.seconds)
    return Text.assemble(
        (f"{event.number:>{width}}/{event.cells}  ", "dim"),
        f"{found.cell.name:<28} ",
        (say_scores(found.scores), "green"),
        (f"  {how}", "dim"),
    )


def study_table(table: Table) -> Grid:
    """A row per arm, two columns per metric: its median and its interval."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    grid.add_column("", style="cyan")
    grid.add_column("labels", justify="right")
    grid.add_column("seeds", justify="right")
    for metric in table.metrics:
        grid.add_column(Text(metric), justify="right")
        grid.add_column("interval")
    grid.add_column("collapsed", style="yellow")
    for row in table.rows:
        grid.add_row(*map(Text, format_row(row, table.metrics)))
    return grid
