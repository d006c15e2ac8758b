"""`gptft new`."""

import itertools
import os
import random
import re
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from typer import Argument, Option

from finetune.cli.console import format_count, print_line
from finetune.cli.task_guess import Column, TaskGuess, guess_task, summarize_columns
from task_formats import Row, UsageError, named_format, suggest

_EVALUATION_NAMES = ("dev", "valid", "validation", "val", "eval", "evaluate")
_MAX_LABELS_SHOWN = 12
_HOLD_OUT_SEED = 42
_PLAIN_YAML = re.compile(
    r"(?!(yes|no|on|off|true|false|null|y|n)$)[a-z_][\w./+-]*( [\w./+-]+)*", re.I
)


def new(
    file: Path = Argument(metavar="FILE", help="Training rows: CSV, TSV, JSONL or Parquet."),
    output: Path | None = Option(
        None, "--output", "-o", metavar="RECIPE", help="Output file.", show_default="FILE.yaml"
    ),
    evaluate: Path | None = Option(
        None, metavar="FILE", help="Evaluation rows.", show_default="dev.csv beside train.csv"
    ),
    hold_out: float | None = Option(
        None, min=0, max=0.9, metavar="F", help="Fraction of rows to hold out for evaluation."
    ),
    format: str | None = Option(
        None, help="classification, entailment, similarity or multiple_choice."
    ),
    text: list[str] | None = Option(
        None, metavar="COLUMN", help="Column of the text. Give it twice for two texts."
    ),
    choices: list[str] | None = Option(
        None, metavar="COLUMN", help="Column of lists of choices, or one for each choice."
    ),
    label: str | None = Option(None, metavar="COLUMN", help="Column of the label."),
) -> None:
    """Write a recipe for your own file.

    Example: gptft new reviews.csv --hold-out 0.1

    What is not given is guessed from the names and types of the columns.
    """
    from finetune.recipe.loading import parse_recipe

    if format is not None:
        named_format(format)
    if evaluate is not None and hold_out is not None:
        raise UsageError(
            "--evaluate and --hold-out exclude each other", cure="Give one of the two."
        )
    rows, columns = _read_file(file)
    try:
        guess = guess_task(
            columns, format=format, label=label, texts=text or (), choices=choices or ()
        )
    except UsageError as error:
        raise error.located(str(file)) from None
    target = output or Path(f"{_choose_name(file)}.yaml")
    _check_is_new(target)
    train = file
    if hold_out is not None:
        train, evaluate = _split_file(file, rows, hold_out, target.parent)
    else:
        evaluate = evaluate or find_evaluation_file(file)
        if evaluate is not None:
            _check_columns(evaluate, guess.used)
    title = one_line(f"{file.name}, {format_count(len(rows), 'row')}")
    unused = one_line(", ".join(name for name in columns if name not in guess.used))
    recipe = _RECIPE.format(
        title=title,
        about=quote(title),
        task=_format_task(guess, unused or "none"),
        train=quote(os.path.relpath(train, target.parent)),
        evaluate=quote(os.path.relpath(evaluate, target.parent)) if evaluate else "null",
    )
    parse_recipe(recipe, str(target))
    target.write_text(recipe, encoding="utf-8")
    _print_guess(guess, rows=len(rows), columns=len(columns))
    if evaluate is None:
        print_line(("No evaluation data. ", "yellow"), "Use --hold-out 0.1 or --evaluate FILE.")
    print_line("Wrote ", (str(target), "bold"), ". Check it, then:")
    for command in ("preview", "train --task"):
        print_line((f"  gptft {command} {shlex.quote(str(target))}", "cyan"))


def _choose_name(file: Path) -> str:
    """The name of the file, or of its folder if the file is called train."""
    stem = file.name.partition(".")[0]
    return (file.absolute().parent.name or stem) if stem == "train" else stem


def _check_is_new(path: Path) -> None:
    if path.exists():
        cure = "Remove it, or choose another name with -o."
        raise UsageError(f"{path} already exists", cure=cure)


def _read_file(file: Path) -> tuple[list[Row], dict[str, Column]]:
    """The rows of a file and its columns; UsageError without rows or column names."""
    from finetune.data import read_rows

    rows = [row for _, row in read_rows(file)]
    columns = summarize_columns(rows)
    if not rows:
        raise UsageError("the file has no rows", where=str(file), cure="Add labelled rows.")
    for name in columns:
        if len(name.split()) > 6 or name.strip().replace(".", "").isdigit():
            raise UsageError(
                f"the first line looks like data, not like column names: {name.strip()[:60]!r}",
                where=str(file),
                cure="Add a line with column names above the rows, such as text,label.",
            )
    return rows, columns


def find_evaluation_file(file: Path) -> Path | None:
    """The file beside train.csv that is called dev.csv, validation.csv or the like."""
    for name in _EVALUATION_NAMES:
        other = file.with_name(file.name.replace("train", name, 1))
        if "train" in file.name and other.is_file():
            return other
    return None


def _check_columns(file: Path, used: Sequence[str]) -> None:
    """Raises UsageError if the evaluation file does not have all columns of the task."""
    _, columns = _read_file(file)
    for name in used:
        if name not in columns:
            raise UsageError(f"no column {name!r}", where=str(file), cure=suggest(name, columns))


def _split_file(
    file: Path, rows: Sequence[Row], fraction: float, folder: Path
) -> tuple[Path, Path]:
    """Writes rows into two new files, for training and for evaluation, and returns their paths.

    Which rows are held out depends only on their positions.
    """
    from finetune.data import write_rows

    stem, dot, suffix = file.name.partition(".")
    train, evaluate = (folder / f"{stem}-{name}{dot}{suffix}" for name in ("train", "evaluate"))
    _check_is_new(train)
    _check_is_new(evaluate)
    count = round(fraction * len(rows))
    if not 0 < count < len(rows):
        what = f"{fraction:g} of {format_count(len(rows), 'row')} leaves a file empty"
        raise UsageError(what, where=str(file), cure="Choose another fraction.")
    held_out = set(random.Random(_HOLD_OUT_SEED).sample(range(len(rows)), count))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with ExitStack() as stack:
        writers = [stack.enter_context(write_rows(path, columns)) for path in (train, evaluate)]
        for index, row in enumerate(rows):
            writers[index in held_out].write(row)
    return train, evaluate


_RECIPE = """\
# Written by `gptft new` for {title}.
# Other values have their defaults, those of GPT-1; `gptft show` prints them all.
about: {about}
task:
{task}
data:
  train: {train}
  # Evaluated after every epoch, and the best checkpoint is kept; null: no evaluation.
  evaluate: {evaluate}
train:
  epochs: 3
  batch_size: 32
  learning_rate: 6.25e-5
  max_tokens: 512  # Longer texts are truncated.
"""


def _format_task(guess: TaskGuess, unused: str) -> str:
    """The task section of a recipe, with comments on the alternatives."""
    metrics = "pearson, spearman, mse" if guess.range else "accuracy, f1, macro_f1, matthews"
    if guess.range:
        labels = ["# Lowest and highest score.", f"range: [{guess.range[0]}, {guess.range[1]}]"]
    else:
        pairs = {f"{quote(name)}: {quote(name)}": rows for name, rows in guess.labels.items()}
        width = max(map(len, pairs))
        labels = ["# Value in the file: name of the label. The names can be changed.", "labels:"]
        labels += [f"  {pair.ljust(width)}  # {rows:,} rows" for pair, rows in pairs.items()]
    lines = [
        "# classification: one text. entailment: two texts in this order. similarity: two texts",
        "# in either order. multiple_choice: a context and its choices.",
        f"format: {guess.format}",
        "columns:",
        *(f"  {name}: {_format_column(column)}" for name, column in guess.columns.items()),
        f"# Unused columns: {unused}.",
        *labels,
        f"# The first metric selects the best checkpoint. Available: {metrics}.",
        f"metrics: [{', '.join(guess.metrics)}]",
    ]
    return "\n".join(f"  {line}" for line in lines)


def _format_column(column: str | Sequence[str]) -> str:
    """A column, a template or a list of columns as YAML."""
    return quote(column) if isinstance(column, str) else f"[{', '.join(map(quote, column))}]"


def quote(text: str) -> str:
    """A text as a YAML scalar.

    >>> quote("no"), quote("not_entailment"), quote("1")
    ('"no"', 'not_entailment', '"1"')
    """
    if text.isascii() and _PLAIN_YAML.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def one_line(text: str) -> str:
    """A text without line ends and control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def _print_guess(guess: TaskGuess, *, rows: int, columns: int) -> None:
    counts = f"{format_count(rows, 'row')}, {format_count(columns, 'column')}"
    print_line(f"{counts}. Detected format: ", (guess.format, "bold"))
    for name, column in guess.columns.items():
        print_line(f"  {name:<10} ", (_format_column(column), "cyan"))
    if guess.range:
        print_line(f"  {'range':<10} {guess.range[0]} to {guess.range[1]}")
    for label, count in itertools.islice(guess.labels.items(), _MAX_LABELS_SHOWN):
        print_line(f"  {'':<10} ", (one_line(label), "green"), f"  {format_count(count, 'row')}")
    if len(guess.labels) > _MAX_LABELS_SHOWN:
        print_line(f"  {'':<10} and {len(guess.labels) - _MAX_LABELS_SHOWN} more")
