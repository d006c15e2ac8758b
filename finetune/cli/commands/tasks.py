"""Verbs that look at recipes: tasks, show and schema."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from finetune.cli.console import console, print_line
from finetune.cli.recipe_options import Changes, with_overrides
from task_formats import UsageError

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="A shipped recipe, a YAML file, or module:name.")
]


def tasks() -> None:
    """List the recipes that come with gptft.

    Example: gptft tasks
    """
    from finetune.cli.task_sources import kind, label_names
    from finetune.recipe import loading as recipe_files

    recipes = {
        name: recipe_files.load_recipe(name) for name in sorted(recipe_files.shipped_recipes())
    }
    rows: list[tuple[str, ...]] = [
        (
            name,
            kind(recipe).replace("_", " "),
            label_names(recipe.task),
            ", ".join(recipe.task.metrics),
            recipe.about,
        )
        for name, recipe in recipes.items()
    ]
    out = console()
    out.print(_wide_table(rows) if out.width >= _WIDE else _narrow_table(rows))
    print_line("See one with ", ("gptft show TASK", "cyan"), "; make one with ", _NEW, ".")


_WIDE = 110
"""Columns from which on a row of the table has room for everything."""


def _wide_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("task", style="bold cyan", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("labels", max_width=26)
    table.add_column("metrics", max_width=10)
    table.add_column("about", style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _narrow_table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("task", style="bold cyan", no_wrap=True)
    table.add_column("facts")
    for name, kind, labels, metrics, about in rows:
        facts = Text.assemble(kind, (f"  {labels}", "green"), (f"  {metrics}", "magenta"))
        table.add_row(Text(name), facts.append(f"\n{about}", "dim"))
    return table


_NEW = ("gptft new FILE", "cyan")


@with_overrides
def show(task: TaskName, changes: Changes) -> None:
    """Print a recipe with every value written out.

    Example: gptft show rte --epochs 5 > mine.yaml
    """
    from finetune.cli.task_sources import find
    from finetune.recipe import loading as recipe_files

    text = recipe_files.dump_recipe(find(task, changes).recipe)
    out = console()
    if out.is_terminal:
        out.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default"))
    else:
        out.out(text, end="", highlight=False)


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here.")
    ] = None,
) -> None:
    """Print the JSON schema of recipes, for editors.

    Example: gptft schema -o recipe.schema.json
    """
    from finetune.recipe import loading as recipe_files

    text = json.dumps(recipe_files.recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        console().out(text, end="", highlight=False)
    else:
        write_new(output, text)
        print_line(f"Wrote {output}. An editor takes it from the first line of a recipe:")
        print_line((f"# yaml-language-server: $schema={output}", "cyan"))


def write_new(path: Path, text: str) -> None:
    """Writes a file that must not be there yet; UsageError where it is."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        refuse_present(path)


def refuse_present(path: Path) -> None:
    """UsageError where a file is there already."""
    if path.exists():
        cure = "Remove it, or choose another name with -o."
        raise UsageError(f"{path} is already there", cure=cure)
