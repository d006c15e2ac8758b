"""The verb preview: the very tokens that the model reads, for some rows."""

import itertools
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from finetune.cli.commands.tasks import TaskName
from finetune.cli.console import console
from finetune.cli.recipe_options import Changes, with_overrides
from finetune.cli.token_view import TokenView, legend, render, summary

if TYPE_CHECKING:
    from task_formats import Example, Task


@with_overrides
def preview(
    task: TaskName,
    changes: Changes,
    rows: Annotated[int, typer.Option(min=1, max=2**16, help="How many rows.")] = 3,
    split: Annotated[str, typer.Option(metavar="NAME", help="Which rows.")] = "train",
) -> None:
    """Show the very tokens of some rows, in colours.

    Example: gptft preview rte --base tiny --data glue --rows 2
    """
    from finetune.cli.task_sources import find, split_of
    from finetune.cli.token_segments import dissect, list_templates
    from finetune.data import open_rows, read_examples
    from finetune.models.pretrained import load_task_tokens
    from task_formats import ViewEncoder

    source = find(task, changes)
    recipe, built = source.recipe, source.task or source.recipe.task.build()
    task_tokens = load_task_tokens(recipe.base)
    encoder = ViewEncoder(
        built.format, task_tokens.tokenize, task_tokens.special_tokens, recipe.train.max_tokens
    )
    found, _ = read_examples(
        built,
        open_rows(recipe.data, split_of(recipe.data, split)),
        split,
        labelled=False,
        on_bad_row=recipe.data.on_bad_row,
    )
    out = console()
    out.print(legend(_has_colors(out), list_templates(built.format)), soft_wrap=not out.is_terminal)
    for example in itertools.islice(found, rows):
        [encoded] = encoder.encode([example])
        views = dissect(example, encoded, built, task_tokens, lm=recipe.train.lm_coefficient > 0)
        _print_example(out, example, views, built)


def _print_example(out: Console, example: "Example", views: list[TokenView], task: "Task") -> None:
    label = "no label" if example.label is None else str(task.labels.name(example.label))
    out.print()
    out.print(Text.assemble((example.id, "bold"), "   label: ", (label, "bold green")))
    for k, view in enumerate(views):
        right = task.format.chooses and example.label == k
        mark = " (the right one)" if right else ""
        out.print(Text(f"view {k + 1} of {len(views)}{mark}: {summary(view)}", "dim"))
        out.print(render(view, _has_colors(out)), soft_wrap=not out.is_terminal)


def _has_colors(out: Console) -> bool:
    return out.is_terminal and not out.no_color and out.color_system is not None
