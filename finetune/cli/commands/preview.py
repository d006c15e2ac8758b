"""`gptft preview`."""

import itertools
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text
from typer import Option

from finetune.cli.console import console
from finetune.cli.options import Overrides, TaskArgument, with_recipe_flags

if TYPE_CHECKING:
    from finetune.cli.token_preview import TokenView
    from task_formats import Example, Task


@with_recipe_flags
def preview(
    task: TaskArgument,
    overrides: Overrides,
    rows: int = Option(3, min=1, max=2**16, help="Number of rows."),
    split: str = Option("train", help="Split to read."),
) -> None:
    """Show tokenized rows.

    Marks special tokens, truncated text and the targets of the LM loss.

    Example: gptft preview rte --base tiny --data glue --rows 2
    """
    from finetune.cli.task_sources import find_split, find_task
    from finetune.cli.token_preview import list_templates, make_token_views, render_legend
    from finetune.data import open_rows, read_examples
    from finetune.models.pretrained import load_task_tokens
    from task_formats import ViewEncoder

    source = find_task(task, overrides)
    recipe, built = source.recipe, source.task or source.recipe.task.build()
    tokens = load_task_tokens(recipe.base)
    max_tokens = recipe.train.max_tokens
    encoder = ViewEncoder(built.format, tokens.tokenize, tokens.special_tokens, max_tokens)
    examples, _ = read_examples(
        built,
        open_rows(recipe.data, find_split(recipe.data, split)),
        split,
        labelled=False,
        on_bad_row=recipe.data.on_bad_row,
    )
    out = console()
    templates = list_templates(built.format) if out.color_system else ()
    out.print(render_legend(templates), soft_wrap=not out.is_terminal)
    with_lm = recipe.train.lm_coefficient > 0
    for example in itertools.islice(examples, rows):
        [encoded] = encoder.encode([example])
        views = make_token_views(example, encoded, built, tokens, max_tokens, with_lm=with_lm)
        _print_example(out, example, views, built)


def _print_example(
    out: Console, example: "Example", views: list["TokenView"], task: "Task"
) -> None:
    from finetune.cli.token_preview import render_view, summarize

    label = "no label" if example.label is None else str(task.labels.name(example.label))
    out.print()
    out.print(Text.assemble((example.id, "bold"), "   label: ", (label, "bold green")))
    for k, view in enumerate(views):
        correct = " (correct)" if task.format.is_multiple_choice and example.label == k else ""
        out.print(Text(f"view {k + 1} of {len(views)}{correct}: {summarize(view)}", "dim"))
        out.print(render_view(view), soft_wrap=not out.is_terminal)
