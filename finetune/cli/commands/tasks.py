"""`gptft tasks`."""

from rich import box
from rich.table import Table
from rich.text import Text

from finetune.cli.console import console, print_line


def tasks() -> None:
    """List the recipes that come with gptft.

    Example: gptft tasks
    """
    from finetune.recipe.loading import load_recipe, shipped_recipes
    from task_formats import Classes

    out = console()
    wide = out.width >= 110
    table = Table(box=box.SIMPLE_HEAD if wide else None, pad_edge=False, show_header=wide)
    table.add_column("task", style="bold cyan", no_wrap=True)
    if wide:
        for column, width in {"format": 15, "labels": 26, "metrics": 10, "about": None}.items():
            table.add_column(column, max_width=width)
    for name in sorted(shipped_recipes()):
        recipe = load_recipe(name)
        task = recipe.task.build()
        kind = "multiple choice" if task.format.is_multiple_choice else recipe.task.format
        kind = kind if isinstance(kind, str) else "custom views"
        labels = ", ".join(task.labels.names) if isinstance(task.labels, Classes) else "a score"
        details = [kind, labels, ", ".join(task.metrics), recipe.about]
        if not wide:
            details = ["  ".join(details[:3]) + f"\n{recipe.about}"]
        table.add_row(*map(Text, (name, *details)))
    out.print(table)
    show, new = ("gptft show TASK", "cyan"), ("gptft new FILE", "cyan")
    print_line("Print a recipe with ", show, ", or write your own with ", new, ".")
