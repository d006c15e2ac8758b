"""`gptft schema`."""

import json
from pathlib import Path

from typer import Option

from finetune.cli.console import console, print_line


def schema(
    output: Path | None = Option(None, "--output", "-o", metavar="FILE", help="Output file."),
) -> None:
    """Print the JSON schema of recipes, for editors.

    Example: gptft schema -o recipe.schema.json
    """
    from finetune.recipe.loading import recipe_schema

    text = json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        console().out(text, end="", highlight=False)
        return
    with output.open("x", encoding="utf-8") as file:
        file.write(text)
    print_line(f"Wrote {output}. To use it in an editor, start a recipe with this line:")
    print_line((f"# yaml-language-server: $schema={output}", "cyan"))
