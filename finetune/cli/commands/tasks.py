"""`gptft tasks`."""

from rich import box
from rich.table import Table
from rich.text import Text

from finetune.cli.console import console, print_line

_WIDE = 110
"""Columns from which each task fits into one row of the table."""


def tasks() -> None:
    """List the recipes that come with gptft.

    Example: gptft tasks
    """
    from finetune.cli.task_sources import describe_labels, name_format
    from finetune.recipe.loading import load_recipe, shipped_recipes

    recipes = {name: load_recipe(name) for name in sorted(shipped_recipes())}
    rows: list[tuple[str, ...]] = [
        (
            name,
            name_format(recipe.task).replace("_", " "),
            describe_labels(recipe.task),
            ", ".join(recipe.task.metrics),
            recipe.about,
        )
        for name, recipe in recipes.items()
    ]
    out = console()
    out.print(_make_wide_table(rows) if out.width >= _WIDE else _make_narrow_table(rows))
    show, new = ("gptft show TASK", "cyan"), ("gptft new FILE", "cyan")
    print_line("Print a recipe with ", show, ", or write your own with ", new, ".")


def _make_wide_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("task", style="bold cyan", no_wrap=True)
    table.add_column("format", no_wrap=True)
    table.add_column("labels", max_width=26)
    table.add_column("metrics", max_width=10)
    table.add_column("about", style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _make_narrow_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("task", style="bold cyan", no_wrap=True)
    table.add_column("details")
    for name, kind, labels, metrics, about in rows:
        details = Text.assemble(kind, (f"  {labels}", "green"), (f"  {metrics}", "magenta"))
        table.add_row(Text(name), details.append(f"\n{about}", "dim"))
    return table
