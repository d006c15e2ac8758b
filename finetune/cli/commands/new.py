"""`gptft new`."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from errno import EEXIST
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from typer import Argument, Option

from finetune.cli.console import format_count, print_line
from finetune.cli.options import FILE_FLAGS, Overrides, with_recipe_flags
from finetune.cli.task_guess import TaskGuess, guess_task, lacks_header, summarize_columns
from finetune.evaluation.metrics import METRICS
from task_formats import Row, UsageError
from task_formats.labels import as_text, normalize_label
from task_formats.templates import look_up

if TYPE_CHECKING:
    from finetune.data.rows import RowLocation
    from finetune.recipe.schema import DataConfig

_EVALUATION_NAMES = ("dev", "valid", "validation", "val", "eval", "evaluate")
_LISTED = 5
"""Labels that are named one by one."""
_Formats = Literal["classification", "entailment", "similarity", "multiple_choice"]
_PLAIN = re.compile(r"(?!(yes|no|on|off|true|false|null|y|n)$)[a-z_][\w./+-]*( [\w./+-]+)*", re.I)


@partial(with_recipe_flags, flags=FILE_FLAGS, with_set=False)
def new(
    overrides: Overrides,
    file: Path = Argument(metavar="FILE", help="Training rows: CSV, TSV, JSONL or Parquet."),
    output: Path | None = Option(
        None, "--output", "-o", metavar="RECIPE", help="Output file.", show_default="FILE.yaml"
    ),
    evaluate: Path | None = Option(
        None, exists=True, help="Evaluation rows.", show_default="dev.csv beside train.csv"
    ),
    hold_out: float | None = Option(
        None, min=0, max=0.9, metavar="F", help="Fraction of rows to hold out for evaluation."
    ),
    format: _Formats | None = Option(None, help="What the rows hold."),
    text: list[str] = Option([], metavar="COLUMN", help="Column of the text; twice for two texts."),
    choices: list[str] = Option(
        [], metavar="COLUMN", help="Column of lists of choices, or one for each choice."
    ),
    label: str | None = Option(None, metavar="COLUMN", help="Column of the label."),
    scores: bool = Option(False, "--scores", help="Whole numbers are scores, not classes."),
) -> None:
    """Write a recipe for your own file.

    Example: gptft new reviews.csv --hold-out 0.1

    What is not given is guessed from the names and types of the columns.
    """
    from finetune.data import open_rows
    from finetune.data.held_out import draw_held_out
    from finetune.recipe.loading import override_data, parse_recipe
    from finetune.recipe.schema import DataConfig

    if evaluate is not None and hold_out is not None:
        raise UsageError("--evaluate and --hold-out exclude each other", cure="Give one.")
    data = override_data(DataConfig(), overrides)
    source = open_rows(data, str(file))
    located = list(source)
    columns = summarize_columns(row for _, row in located)
    if data.header is None and lacks_header(columns):
        data = override_data(data, {"header": False})
        source = open_rows(data, str(file))
        located = list(source)
        columns = summarize_columns(row for _, row in located)
    rows = [row for _, row in located]
    try:
        guess = guess_task(
            columns, format=format, label=label, texts=text, choices=choices, scores=scores
        )
    except UsageError as error:
        raise error.located(str(file)) from None
    stem = file.name.partition(".")[0]
    target = output or Path(f"{file.absolute().parent.name if stem == 'train' else stem}.yaml")
    if target.exists():
        raise FileExistsError(EEXIST, "", str(target))
    if hold_out is None:
        evaluate = evaluate or find_evaluation_file(file)
    title = f"{one_line(file.name)}, {format_count(len(rows), 'row')}"
    recipe = _format_recipe(guess, title, target.parent, file, evaluate, hold_out, data)
    parsed = parse_recipe(recipe, str(target))
    held_out = 0
    if hold_out is not None:
        held_out = int(draw_held_out(source, parsed.data, parsed.task.build()).sum())
    target.write_text(recipe, encoding="utf-8")
    print_line(f"{format_count(len(rows), 'row')}. Detected format: ", (guess.format, "bold"))
    for name, column in guess.columns.items():
        print_line(f"  {name:<10} ", (_format_column(column), "cyan"))
    if guess.unread_choices:
        names = ", ".join(guess.unread_choices)
        note = f"{names} may be choices, but they are not used: {guess.columns['label']} is taken"
        why = "for the label, and its values are not their numbers, letters or texts."
        print_line((f"{note} {why}", "yellow"))
    for note in _describe_labels(located, guess):
        print_line((note, "yellow"))
    if found := source.describe():
        print_line(f"Found {found}.")
    if any(name.startswith("Unnamed: ") for name in guess.unused):
        print_line("Columns without a name are not used.")
    if held_out:
        print_line(f"{format_count(held_out, 'row')} are held out for evaluation.")
    elif evaluate is None:
        print_line(("No evaluation data. ", "yellow"), "Use --hold-out 0.1 or --evaluate FILE.")
    print_line("Wrote ", (str(target), "bold"), ". Check it, then:")
    for command in ("preview", "train --task"):
        print_line((f"  gptft {command} {shlex.quote(str(target))}", "cyan"))


def find_evaluation_file(file: Path) -> Path | None:
    """The file beside train.csv that is called dev.csv, validation.csv or the like."""
    others = (file.with_name(file.name.replace("train", n, 1)) for n in _EVALUATION_NAMES)
    return next((other for other in others if other.name != file.name and other.is_file()), None)


def _label(row: Row, guess: TaskGuess) -> str:
    """The class of a row; empty for scores and several labels."""
    try:
        value = as_text(look_up(row, str(guess.columns["label"])))
    except KeyError:
        return ""
    text = normalize_label(value)
    return text if text in guess.labels or text in guess.unlabelled else ""


def _describe_labels(located: "list[tuple[RowLocation, Row]]", guess: TaskGuess) -> Iterator[str]:
    """Says which rows are left out, and which labels occur once."""
    places: dict[str, list[RowLocation]] = {}
    for location, row in located:
        places.setdefault(_label(row, guess), []).append(location)
    for text in guess.unlabelled:
        if text in places:
            first, count = places[text][0], format_count(len(places[text]), "row")
            yield f"{count} with the label {text!r} left out, the first: {first}."
    once = [text for text, count in guess.labels.items() if count == 1 and text in places]
    for text in once[:_LISTED]:
        yield f"Only one row has the label {text!r}: {places[text][0]}. Is it a typing error?"
    if len(once) > _LISTED:
        yield f"{len(once) - _LISTED} more labels occur in only one row."


_RECIPE = """\
# Written by `gptft new` for {title}.
# Other values have their defaults; `gptft show` prints them all.
about: {about}
task:
  # classification: one text. entailment: two texts in this order. similarity: two texts
  # in either order. multiple_choice: a context and its choices.
  format: {format}
  columns:
    {columns}
  # Unused columns: {unused}.
  {labels}
  # The first metric selects the best checkpoint. Available:
  # {available}.
  metrics: [{metrics}]
data:
  train: {train}
{evaluation}
{options}train:
  epochs: 3
  batch_size: 32
  learning_rate: 1e-4
  max_tokens: 512  # Longer texts are truncated.
"""


def _format_recipe(
    guess: TaskGuess,
    title: str,
    folder: Path,
    train: Path,
    evaluate: Path | None,
    hold_out: float | None,
    data: "DataConfig",
) -> str:
    """A recipe in `folder`, with comments on the alternatives."""
    evaluated = quote(os.path.relpath(evaluate, folder)) if evaluate else "null"
    evaluation = f"""\
  # Evaluated after every epoch, and the best checkpoint is kept; null: no evaluation.
  evaluate: {evaluated}"""
    if hold_out is not None:
        evaluation = f"""\
  # This part of the rows is evaluated after every epoch, and the best checkpoint is kept. Every
  # label has its share, and equal texts stay together. group_by: COLUMN keeps others together.
  hold_out: {hold_out:g}"""
    kind = "scores" if guess.range else "classes" if guess.separator is None else "multi_label"
    if guess.range:
        labels = ["# Lowest and highest score.", f"range: [{guess.range[0]}, {guess.range[1]}]"]
    else:
        labels = ["# Value in the file: name of the label. The names can be changed.", "labels:"]
        for name, rows in guess.labels.items():
            labels.append(f"  {quote(name)}: {quote(name)}  # {rows:,} rows")
    could_be_ordered = kind == "classes" and guess.format != "multiple_choice"
    if could_be_ordered and len(guess.labels) > 2 and all(map(_is_number, guess.labels)):
        labels.append(
            "# ordinal: true  # For labels in order, such as ratings; metrics also mae, spearman."
        )
    if guess.unlabelled:
        labels.append("# Rows with these labels are left out.")
        labels.append(f"unlabelled: [{', '.join(map(quote, guess.unlabelled))}]")
    if guess.separator is not None:
        labels += ["# A row can have several labels.", "multi_label: true"]
        if guess.separator not in ("", ","):
            labels.append(f"separator: {quote(guess.separator)}")
    return _RECIPE.format(
        title=title,
        about=quote(title),
        format=guess.format,
        columns="\n    ".join(f"{n}: {_format_column(c)}" for n, c in guess.columns.items()),
        unused=one_line(", ".join(guess.unused) or "none"),
        labels="\n  ".join(labels),
        available=", ".join(name for name, metric in METRICS.items() if kind in metric.labels),
        metrics=", ".join(guess.metrics),
        train=quote(os.path.relpath(train, folder)),
        evaluation=evaluation,
        options=_format_options(data),
    )


def _format_options(data: "DataConfig") -> str:
    """How the files are written, as far as it is given."""
    given = {name: getattr(data, name) for name in ("format", "delimiter", "encoding", "header")}
    texts = {
        name: str(value).lower() if isinstance(value, bool) else quote(value)
        for name, value in given.items()
        if value is not None
    }
    return "".join(f"  {name}: {text}\n" for name, text in texts.items())


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _format_column(column: str | Sequence[str]) -> str:
    """A column, a template or a list of columns as YAML."""
    return quote(column) if isinstance(column, str) else f"[{', '.join(map(quote, column))}]"


def quote(text: str) -> str:
    """A text as a YAML scalar.

    >>> quote("no"), quote("not_entailment"), quote("1")
    ('"no"', 'not_entailment', '"1"')
    """
    if text.isascii() and _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def one_line(text: str) -> str:
    """A text without line ends and control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
