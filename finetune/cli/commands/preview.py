"""`gptft preview`."""

import itertools

from typer import Option

from finetune.cli.console import console, print_line
from finetune.cli.options import Overrides, TaskArgument, with_recipe_flags


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
    from finetune.cli.token_preview import render_legend, render_view, summarize
    from finetune.data import read_examples
    from finetune.data.held_out import open_split
    from finetune.models.pretrained import load_task_tokens
    from finetune.models.token_views import list_templates, make_token_views
    from task_formats import ViewEncoder

    source = find_task(task, overrides)
    recipe, built = source.recipe, source.task or source.recipe.task.build()
    tokens = load_task_tokens(recipe.base)
    max_tokens = recipe.train.max_tokens
    specials = tokens.special_tokens
    encoder = ViewEncoder(built.format, tokens.tokenize, specials, max_tokens, built.windows)
    located = open_split(recipe.data, built, find_split(recipe.data, split))
    on_bad_row = recipe.data.on_bad_row
    examples, _ = read_examples(built, located, split, labelled=False, on_bad_row=on_bad_row)
    out = console()
    templates = list_templates(built.format) if out.color_system else ()
    out.print(render_legend(templates), soft_wrap=not out.is_terminal)
    with_lm = recipe.train.lm_coefficient > 0
    for example in itertools.islice(examples, rows):
        [encoded] = encoder.encode([example])
        views = make_token_views(example, encoded, built, tokens, max_tokens, with_lm=with_lm)
        label = "no label" if example.label is None else built.labels.name(example.label)
        label = ", ".join(label) or "none" if isinstance(label, tuple) else str(label)
        print_line("\n", (example.id, "bold"), "   label: ", (label, "bold green"))
        if encoded.windows > 1:
            print_line((f"read in {encoded.windows} windows; this is the first", "dim"))
        for k, view in enumerate(views):
            correct = " (correct)" if example.choices and example.label == k else ""
            print_line((f"view {k + 1} of {len(views)}{correct}: {summarize(view)}", "dim"))
            out.print(render_view(view), soft_wrap=not out.is_terminal)
