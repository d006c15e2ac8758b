"""`gptft tasks`."""

from rich.table import Table

from finetune.cli.console import console, print_line


def tasks() -> None:
    """List the recipes that come with gptft.

    Example: gptft tasks
    """
    from finetune.recipe.loading import load_recipe, shipped_recipes

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold cyan", no_wrap=True)
    for name in sorted(shipped_recipes()):
        recipe = load_recipe(name)
        task = recipe.task.build()
        kind = "multiple choice" if task.format.is_multiple_choice else recipe.task.format
        kind = kind if isinstance(kind, str) else "custom views"
        labels = ", ".join(task.labels.names) or "a score"
        table.add_row(name, f"{kind}  {labels}  {', '.join(task.metrics)}\n{recipe.about}")
    console().print(table)
    show, new = ("gptft show TASK", "cyan"), ("gptft new FILE", "cyan")
    print_line("Print a recipe with ", show, ", or write your own with ", new, ".")
