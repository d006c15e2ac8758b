"""`gptft show`."""

from rich.syntax import Syntax

from finetune.cli.console import console
from finetune.cli.options import Overrides, TaskArgument, with_recipe_flags


@with_recipe_flags
def show(task: TaskArgument, overrides: Overrides) -> None:
    """Print a recipe with all its values.

    Example: gptft show rte --epochs 5 > mine.yaml
    """
    from finetune.cli.task_sources import find_task

    text = find_task(task, overrides).recipe.to_yaml()
    out = console()
    if out.is_terminal:
        out.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default"))
    else:
        out.out(text, end="", highlight=False)
