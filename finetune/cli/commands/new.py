"""`gptft new`."""

import shlex
from collections.abc import Iterator
from errno import EEXIST
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from typer import Argument, Option

from finetune.cli.columns import Column, lacks_header, summarize_columns
from finetune.cli.console import format_count, print_line
from finetune.cli.options import FILE_FLAGS, Overrides, with_recipe_flags
from finetune.cli.recipe_text import format_column, format_recipe, one_line
from finetune.cli.task_guess import LabelNotFoundError, TaskGuess, guess_task
from task_formats import Row, RowError, UsageError
from task_formats.labels import as_text, normalize_label
from task_formats.templates import look_up

if TYPE_CHECKING:
    from finetune.data.rows import RowLocation, Rows
    from finetune.recipe.schema import DataConfig, Recipe

_EVALUATION_NAMES = ("dev", "valid", "validation", "val", "eval", "evaluate")
_MAX_LABELS = 2**24
"""Bytes of a file that may hold the labels of another one."""
_LISTED = 5
"""Labels that are named one by one."""
_Formats = Literal["classification", "entailment", "similarity", "multiple_choice"]


@partial(with_recipe_flags, flags=FILE_FLAGS, with_set=False)
def new(
    overrides: Overrides,
    file: Path = Argument(
        metavar="FILE|FOLDER", help="Training rows: CSV, TSV, JSON, JSONL, Parquet, Arrow or Excel."
    ),
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

    What is not given is guessed from the names and types of the columns. A folder, or a JSON file
    of splits, holds training and evaluation rows.
    """
    from finetune.data.held_out import draw_held_out
    from finetune.recipe.loading import override_data, parse_recipe, resolve_paths
    from finetune.recipe.schema import DataConfig

    if evaluate is not None and hold_out is not None:
        raise UsageError("--evaluate and --hold-out exclude each other", cure="Give one.")
    data = _find_splits(file, override_data(DataConfig(), overrides))
    if data.path is not None and evaluate is not None:
        cure = "Leave --evaluate out, or name a file of training rows."
        raise UsageError("it holds its own evaluation rows", where=str(file), cure=cure)
    training = _read_training_rows(data)
    try:
        guess = guess_task(
            training.columns,
            format=format,
            label=label,
            texts=text,
            choices=choices,
            scores=scores,
            class_names=training.source.class_names(),
        )
    except LabelNotFoundError as error:
        cure = error.cure + _hint_at_label_file(file, len(training.rows))
        raise UsageError(error.what, where=str(file), cure=cure) from None
    except UsageError as error:
        raise error.located(str(file)) from None
    target = output or _name_recipe(file)
    if target.exists():
        raise FileExistsError(EEXIST, "", str(target))
    data = training.data
    if hold_out is not None:
        data = override_data(data, {"evaluate": None, "hold_out": hold_out})
    elif data.path is None and (evaluate := evaluate or find_evaluation_file(file)):
        data = override_data(data, {"evaluate": str(evaluate)})
    title = f"{one_line(file.absolute().name)}, {format_count(len(training.rows), 'row')}"
    content = format_recipe(guess, title, target.parent, data)
    recipe = resolve_paths(parse_recipe(content, str(target)), target.absolute().parent)
    held_out = 0
    if hold_out is not None:
        held_out = int(draw_held_out(training.source, recipe.data, recipe.task.build()).sum())
    target.write_text(content, encoding="utf-8")
    _print_guess(guess, training, recipe)
    if held_out:
        print_line(f"{format_count(held_out, 'row')} are held out for evaluation.")
    elif data.evaluate is None:
        print_line(("No evaluation data. ", "yellow"), "Use --hold-out 0.1 or --evaluate FILE.")
    print_line("Wrote ", (str(target), "bold"), ". Check it, then:")
    for command in ("preview", "train --task"):
        print_line((f"  gptft {command} {shlex.quote(str(target))}", "cyan"))


def _find_splits(file: Path, data: "DataConfig") -> "DataConfig":
    """Names the training rows: a file, or a split of a folder or of a JSON file of splits."""
    from finetune.data.known_datasets import split_words
    from finetune.data.sources import list_splits
    from finetune.recipe.loading import override_data

    names = list_splits(file, data.format)
    if names is None:
        return override_data(data, {"train": str(file)})
    found = {}
    for split in ("train", "validation"):
        found[split] = next((name for name in split_words(split) if name in names), None)
    if found["train"] is None:
        what = f"no training split: {', '.join(names) or 'no rows at all'}"
        raise UsageError(what, where=str(file), cure="Name the file with the training rows.")
    values = {"path": str(file), "train": found["train"], "evaluate": found["validation"]}
    return override_data(data, values)


class _TrainingRows(NamedTuple):
    """The rows of a file that can be read, and how they are read."""

    data: "DataConfig"
    source: "Rows"
    rows: "list[tuple[RowLocation, Row]]"
    columns: dict[str, Column]


def _read_training_rows(data: "DataConfig") -> _TrainingRows:
    """Reads the training rows, without a header if the first row is one of data."""
    from finetune.recipe.loading import override_data

    found = _read(data)
    if data.header is None and lacks_header(found.columns):
        found = _read(override_data(data, {"header": False}))
    return found


def _read(data: "DataConfig") -> _TrainingRows:
    """Reads the training rows; RowError if none can be read."""
    from finetune.data import open_rows

    source = open_rows(data, str(data.train))
    rows = [(location, row) for location, row in source.read() if not isinstance(row, RowError)]
    if not rows and not list(source):  # Raises RowError if there are rows.
        cure = "The file has at most a header."
        raise UsageError("no rows", where=source.origin, cure=cure)
    return _TrainingRows(data, source, rows, summarize_columns(row for _, row in rows))


def _name_recipe(file: Path) -> Path:
    """The recipe of FILE.csv is FILE.yaml; that of FOLDER/train.csv is FOLDER.yaml."""
    stem = file.absolute().name.partition(".")[0]
    return Path(f"{file.absolute().parent.name if stem == 'train' else stem}.yaml")


def _hint_at_label_file(file: Path, count: int) -> str:
    """Names a file beside this one that may hold the labels, a line for each row."""
    others = sorted(file.parent.iterdir()) if file.is_file() else ()
    for other in others:
        is_near = other.stem == file.stem or "label" in other.name.lower()
        if not is_near or other == file or not other.is_file():
            continue
        if other.stat().st_size < _MAX_LABELS and abs(_count_lines(other) - count) <= 1:
            name, texts = shlex.quote(str(other)), shlex.quote(str(file))
            return f" Are the labels in {other.name}? Join them: paste {name} {texts} > new.tsv"
    return ""


def _count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n")


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


def _print_guess(guess: TaskGuess, training: _TrainingRows, recipe: "Recipe") -> None:
    """Prints the format and the columns, and what should be looked at."""
    print_line(
        f"{format_count(len(training.rows), 'row')}. Detected format: ", (guess.format, "bold")
    )
    for name, column in guess.columns.items():
        print_line(f"  {name:<10} ", (format_column(column), "cyan"))
    notes = (
        _describe_choices(guess),
        _describe_labels(training.rows, guess),
        _describe_bad_rows(recipe),
    )
    for note in chain.from_iterable(notes):
        print_line((note, "yellow"))
    if found := training.source.describe():
        print_line(f"Found {found}.")
    if any(name.startswith("Unnamed: ") for name in guess.unused):
        print_line("Columns without a name are not used.")


def _describe_choices(guess: TaskGuess) -> Iterator[str]:
    """Says which choices the recipe does not read."""
    if guess.unread_choices:
        names, label = ", ".join(guess.unread_choices), guess.columns["label"]
        yield (
            f"{names} may be choices, but they are not used: {label} is taken for the label, and "
            "its values are not their numbers, letters or texts."
        )
    if guess.embedded_choices:
        yield (
            f"The texts of {guess.embedded_choices} seem to hold choices, such as (A) and (B). For "
            "multiple choice, put the choices in a list or in a column for each."
        )


def _describe_labels(located: "list[tuple[RowLocation, Row]]", guess: TaskGuess) -> Iterator[str]:
    """Says which rows are left out, which labels occur once, and which in two Unicode forms."""
    from finetune.data.checks import find_unicode_forms

    column = str(guess.columns["label"])
    places: dict[str, list[RowLocation]] = {}
    for location, row in located:
        places.setdefault(_label(row, guess), []).append(location)
    for text in guess.unlabelled:
        if text in guess.typing_errors:
            yield (
                f"Only one row has the label {text!r}: {places[text][0]}. It resembles "
                f"{guess.typing_errors[text]!r}, so the row is left out (task.unlabelled)."
            )
        elif text in places:
            first, count = places[text][0], format_count(len(places[text]), "row")
            what = f"with the label {text!r}" if text else "without a label"
            yield f"{count} {what} left out, the first: {first}."
    once = [text for text, count in guess.labels.items() if count == 1 and text in places]
    for text in once[:_LISTED]:
        yield f"Only one row has the label {text!r}: {places[text][0]}. Is it a typing error?"
    if len(once) > _LISTED:
        yield f"{len(once) - _LISTED} more labels occur in only one row."
    folded: dict[str, str] = {}
    for text in guess.labels:
        if (other := folded.setdefault(text.casefold(), text)) != text:
            yield f"The labels {other!r} and {text!r} differ only in upper and lower case."
    for text, place in find_unicode_forms(column, located).items():
        yield f"The label {text!r} occurs in two Unicode forms, which are equal: {place}."


def _describe_bad_rows(recipe: "Recipe") -> Iterator[str]:
    """Says how many rows the written recipe cannot use, and why."""
    from finetune.data import ReadReport, build_examples
    from finetune.data.held_out import open_split

    task, data = recipe.task.build(), recipe.data
    data = data.model_copy(update={"hold_out": None})
    for split in filter(None, (data.train, data.evaluate)):
        report = ReadReport()
        rows = open_split(data, task, split)
        for _ in build_examples(task, rows.read(), "", on_bad_row="skip", report=report):
            pass
        if report.skipped:
            first = report.skipped[0]
            count = format_count(report.num_skipped, "row")
            yield f"{count} cannot be used, the first: {first.location}: {first.reason}."
            yield "Correct them, or train with --on-bad-row skip."
