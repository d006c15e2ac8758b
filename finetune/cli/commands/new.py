"""The verb new: a recipe for a user's own file, with a comment at every guess."""

import errno
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.console import print_line
from finetune.cli.drafting.columns import Column, look
from finetune.cli.drafting.guesses import guess
from finetune.cli.drafting.recipe_text import Draft, column_text, one_line, write_recipe
from task_formats import UsageError, named_format, suggest

_SPLITS = ("dev", "valid", "validation", "val", "eval", "evaluate")
_MOST_SHOWN = 12
"""Labels listed on the screen; the recipe lists all."""


def new(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Rows to train on: CSV, TSV, JSONL or Parquet.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RECIPE", help="Write it here; else FILE.yaml."),
    ] = None,
    evaluate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rows held out, to score the model on.")
    ] = None,
    hold: Annotated[
        float | None,
        typer.Option("--hold-out", min=0, max=0.9, metavar="PART", help="Part FILE, as 0.1."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help="classification, entailment, similarity or multiple_choice."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The label.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A text that is read. Give it twice for pairs."),
    ] = None,
) -> None:
    """Write a commented recipe for a file of your own.

    Example: gptft new reviews.csv --hold-out 0.1
    """
    from finetune.cli.drafting.hold_out import hold_out
    from finetune.recipe import loading as recipe_files

    if format is not None:
        named_format(format)
    if evaluate is not None and hold is not None:
        what = "--evaluate names rows to score on, and --hold-out parts some off"
        raise UsageError(what, cure="Give one of the two.")
    columns, rows = _look(file)
    try:
        found = guess(columns, format=format, label=label, texts=text or ())
    except UsageError as error:
        raise error.located(str(file)) from None
    target = output or Path(f"{_name(file)}.yaml")
    if hold is None:
        train, held_out = file, evaluate or find_held_out(file)
        if held_out is not None:
            _check_alike(held_out, found.used)
    else:
        if target.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        train, held_out = hold_out(file, hold, target.parent)
    draft = Draft(found, columns, rows, file, train, held_out, target)
    recipe = write_recipe(draft)
    recipe_files.parse_recipe(recipe, str(target)).task.build()
    with target.open("x", encoding="utf-8") as stream:
        stream.write(recipe)
    _explain(draft)


def _name(file: Path) -> str:
    """A file's own name, or its folder's where it is called train."""
    stem = file.name.partition(".")[0]
    return (file.absolute().parent.name or stem) if stem == "train" else stem


def _look(file: Path) -> tuple[list[Column], int]:
    """Columns and number of rows. UsageError where there are none, or no names of columns."""
    from finetune.data import read_rows

    columns, rows = look(row for _, row in read_rows(file))
    if not rows:
        raise UsageError("the file has no rows", where=str(file), cure="It needs rows to look at.")
    for column in columns:
        name = column.name.strip()
        if len(name.split()) > 6 or (name and name.replace(".", "").isdigit()):
            raise UsageError(
                f"the first line looks like data, not like names of columns: {name[:60]!r}",
                where=str(file),
                cure="Put a line with names above the rows, such as text,label.",
            )
    return columns, rows


def _check_alike(file: Path, used: Sequence[str]) -> None:
    """UsageError where a file cannot be read, or lacks a column that the task reads."""
    names = [column.name for column in _look(file)[0]]
    for name in used:
        if name not in names:
            raise UsageError(f"no column {name!r}", where=str(file), cure=suggest(name, names))


def find_held_out(file: Path) -> Path | None:
    """A file beside the training rows that is called like one to evaluate on."""
    for word in _SPLITS:
        other = file.with_name(file.name.replace("train", word, 1))
        if "train" in file.name and other.is_file():
            return other
    return None


def _explain(draft: Draft) -> None:
    """The guess on the screen, and what to type next."""
    found, columns, rows = draft.found, draft.columns, draft.rows
    by_name = {column.name: column for column in columns}
    print_line(f"{rows:,} rows, {len(columns)} columns. My guess: ", (found.format, "bold"))
    for field, name in found.columns.items():
        print_line(f"  {field:<10} ", (column_text(name), "cyan"), _manner(field, by_name, name))
    if found.range:
        print_line(f"  {'range':<10} {found.range[0]:g} to {found.range[1]:g}")
    for label, count in itertools.islice(found.counts.items(), _MOST_SHOWN):
        print_line(f"  {'':<10} ", (one_line(label), "green"), f"  {count:,} rows")
    if len(found.counts) > _MOST_SHOWN:
        print_line(f"  {'':<10} and {len(found.counts) - _MOST_SHOWN} more")
    if draft.held_out is None:
        print_line(("No rows to score the model on. ", "yellow"), "Part the file: --hold-out 0.1")
    print_line("Wrote ", (str(draft.target), "bold"), ". Check it, then:")
    for verb in ("preview", "train --task"):
        print_line((f"  gptft {verb} {shlex.quote(str(draft.target))}", "cyan"))


def _manner(field: str, columns: dict[str, Column], name: str | tuple[str, ...]) -> str:
    if field == "label" or not isinstance(name, str) or name not in columns:
        return ""
    column = columns[name]
    if column.is_list:
        return f"  lists of up to {column.longest}"
    return f"  {column.mean_words:.0f} words on average"
