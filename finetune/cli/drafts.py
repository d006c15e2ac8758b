"""The verb new: a recipe for a user's own file, with a comment at every guess."""

import itertools
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.catalogue import write_new
from finetune.cli.columns import Column, look
from finetune.cli.guesses import Guess, guess
from finetune.cli.screen import print_line
from task_formats import UsageError

_SPLITS = ("dev", "valid", "validation", "val", "eval", "evaluate", "test")
_MOST_SHOWN = 12
"""Labels listed on the screen; the recipe lists all."""
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*( [A-Za-z0-9_./+-]+)*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
"""What YAML, in one version or another, does not take for text."""


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

    Example: gptft new reviews.csv
    """
    from finetune import recipe_files
    from finetune.data import read_rows
    from task_formats import named_format

    if format is not None:
        named_format(format)
    columns, rows = look(row for _, row in read_rows(file))
    if not rows:
        raise UsageError("the file has no rows", where=str(file), cure="It needs rows to look at.")
    _refuse_headless(columns, file)
    try:
        found = guess(columns, format=format, label=label, texts=text or ())
    except UsageError as error:
        raise error.located(str(file)) from None
    target = output or Path(f"{_name(file)}.yaml")
    held_out = evaluate or find_held_out(file)
    write_new(target, write_recipe(found, columns, rows, file, held_out, target.parent))
    recipe_files.load_recipe(target)
    _explain(found, columns, rows, target, held_out)


def _name(file: Path) -> str:
    """A file's own name, or its folder's where it is called train."""
    stem = file.name.partition(".")[0]
    return (file.absolute().parent.name or stem) if stem == "train" else stem


def _refuse_headless(columns: list[Column], file: Path) -> None:
    for column in columns:
        name = column.name.strip()
        if len(name.split()) > 6 or (name and name.replace(".", "").isdigit()):
            raise UsageError(
                f"the first line looks like data, not like names of columns: {name[:60]!r}",
                where=str(file),
                cure="Put a line with names above the rows, such as text,label.",
            )


def find_held_out(file: Path) -> Path | None:
    """A file beside the training rows that is called like one to evaluate on."""
    for word in _SPLITS:
        other = file.with_name(file.name.replace("train", word, 1))
        if "train" in file.name and other.is_file():
            return other
    return None


def write_recipe(
    found: Guess, columns: list[Column], rows: int, file: Path, held_out: Path | None, folder: Path
) -> str:
    """The recipe as YAML. Its comments hold the counts, the reasons and what else could be."""
    metrics = "pearson, spearman, mse" if found.range else "accuracy, f1, macro_f1, matthews"
    unused = ", ".join(column.name for column in columns if column.name not in found.used)
    lines = [
        f"# Written by `gptft new {file.name}` after a look at its {rows:,} rows.",
        "# Whatever is not said here is GPT-1's; `gptft show` writes it all out.",
        f"about: {quote(f'{file.name}, {rows:,} rows')}",
        "task:",
        f"  # {found.reason.capitalize()}. The kinds: classification (one text),",
        "  # entailment (two texts, in this order), similarity (two texts, in either order),",
        "  # multiple_choice (a text and the choices that may follow it).",
        f"  format: {found.format}",
        "  columns:",
        *(f"    {field}: {_column(name)}" for field, name in found.columns.items()),
        f"  # Not used: {_one_line(unused) or 'none'}.",
        *_label_lines(found),
        f"  # The first one chooses the best state. Known: {metrics}.",
        f"  metrics: [{', '.join(found.metrics)}]",
        "data:",
        f"  train: {quote(_relative(file, folder))}",
        *(_HELD_OUT if held_out else _NO_SCORES),
        f"  evaluate: {quote(_relative(held_out, folder)) if held_out else 'null'}",
        "train:",
        "  epochs: 3",
        "  batch_size: 32",
        "  learning_rate: 6.25e-5",
        "  max_tokens: 512  # longer texts are cut, and counted",
    ]
    return "\n".join(lines) + "\n"


_HELD_OUT = ("  # Scored after every epoch; the best state is kept.",)
_NO_SCORES = (
    "  # Without rows held out there are no scores, and the last state is kept.",
    "  # Better: keep some rows in a file of their own and name it here.",
)


def _label_lines(found: Guess) -> list[str]:
    if found.range:
        low, high = found.range
        return ["  # The lowest and the highest score.", f"  range: [{low:g}, {high:g}]"]
    pairs = {f"{quote(label)}: {quote(label)}": count for label, count in found.counts.items()}
    width = max(map(len, pairs))
    return [
        "  # What the file says: the name it goes by (change the names as you like).",
        "  labels:",
        *(f"    {pair.ljust(width)}  # {count:,} rows" for pair, count in pairs.items()),
    ]


def _column(name: str | tuple[str, ...]) -> str:
    return quote(name) if isinstance(name, str) else f"[{', '.join(map(quote, name))}]"


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:  # another drive
        return path.absolute().as_posix()


def quote(text: str) -> str:
    """A text as YAML that is read back as this very text.

    >>> quote("no"), quote("not_entailment"), quote("1")
    ('"no"', 'not_entailment', '"1"')
    """
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else _escape(c) for c in escaped) + '"'


def _escape(character: str) -> str:
    return f"\\U{ord(character):08x}"


def _explain(
    found: Guess, columns: list[Column], rows: int, target: Path, held_out: Path | None
) -> None:
    by_name = {column.name: column for column in columns}
    print_line(f"{rows:,} rows, {len(columns)} columns. My guess: ", (found.format, "bold"))
    for field, name in found.columns.items():
        print_line(f"  {field:<10} ", (_column(name), "cyan"), _manner(field, by_name, name))
    if found.range:
        print_line(f"  {'range':<10} {found.range[0]:g} to {found.range[1]:g}")
    for label, count in itertools.islice(found.counts.items(), _MOST_SHOWN):
        print_line(f"  {'':<10} ", (_one_line(label), "green"), f"  {count:,} rows")
    if len(found.counts) > _MOST_SHOWN:
        print_line(f"  {'':<10} and {len(found.counts) - _MOST_SHOWN} more")
    if held_out is None:
        print_line(("No rows to score the model on: ", "yellow"), "see evaluate in the recipe.")
    print_line("Wrote ", (str(target), "bold"), ". Check it, then:")
    for verb in ("preview", "train --task"):
        print_line((f"  gptft {verb} {target}", "cyan"))


def _manner(field: str, columns: dict[str, Column], name: str | tuple[str, ...]) -> str:
    if field == "label" or not isinstance(name, str) or name not in columns:
        return ""
    column = columns[name]
    if column.is_list:
        return f"  lists of up to {column.longest}"
    return f"  {column.mean_words:.0f} words on average"


def _one_line(text: str) -> str:
    """A text from a file, without what would end a line or command a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
