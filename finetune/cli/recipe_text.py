"""Writes a guessed task as a recipe, for `gptft new`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.task_guess import TaskGuess
from finetune.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from finetune.recipe.schema import DataConfig

_MAX_ANSWERS = 20
"""Labels up to which a prompt is written."""
_PLAIN = re.compile(r"(?!(yes|no|on|off|true|false|null|y|n)$)[a-z_][\w./+-]*( [\w./+-]+)*", re.I)

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
{prompt}data:
{path}  train: {train}
{evaluation}
{options}train:
  # epochs: 3  # Without it: 3, and more for few rows.
  batch_size: 32
  learning_rate: 1e-4
  max_tokens: 512  # Longer texts are truncated.
"""


def format_recipe(guess: TaskGuess, title: str, folder: Path, data: "DataConfig") -> str:
    """Returns a recipe in `folder`, with comments on the alternatives."""
    kind = "scores" if guess.range else "classes" if guess.separator is None else "multi_label"

    def name_split(split: str) -> str:
        return os.path.relpath(split, folder) if data.path is None else split

    return _RECIPE.format(
        title=title,
        about=quote(title),
        format=guess.format,
        columns="\n    ".join(f"{n}: {format_column(c)}" for n, c in guess.columns.items()),
        unused=one_line(", ".join(guess.unused) or "none"),
        labels="\n  ".join(_format_labels(guess)),
        available=", ".join(name for name, metric in METRICS.items() if kind in metric.labels),
        metrics=", ".join(guess.metrics),
        prompt=_format_prompt(guess),
        path="" if data.path is None else f"  path: {quote(os.path.relpath(data.path, folder))}\n",
        train=quote(name_split(str(data.train))),
        evaluation=_format_evaluation(data, name_split(data.evaluate) if data.evaluate else None),
        options=_format_options(data),
    )


def _format_labels(guess: TaskGuess) -> list[str]:
    """The lines of the task section that say what the labels are."""
    if guess.range:
        lines = ["# Lowest and highest score.", f"range: [{guess.range[0]}, {guess.range[1]}]"]
    else:
        lines = ["# Value in the file: name of the label. The names can be changed.", "labels:"]
        for text, rows in guess.labels.items():
            name = guess.class_names.get(text, text)
            lines.append(f"  {quote(text)}: {quote(name)}  # {rows:,} rows")
    are_classes = guess.range is None and guess.separator is None
    could_be_ordered = are_classes and guess.format != "multiple_choice"
    if could_be_ordered and len(guess.labels) > 2 and all(map(_is_number, guess.labels)):
        lines.append(
            "# ordinal: true  # For labels in order, such as ratings; metrics also mae, spearman."
        )
    if guess.unlabelled:
        lines.append("# Rows with these labels are left out.")
        lines.append(f"unlabelled: [{', '.join(map(quote, guess.unlabelled))}]")
    if guess.separator is not None:
        lines += ["# A row can have several labels.", "multi_label: true"]
        if guess.separator not in ("", ","):
            lines.append(f"separator: {quote(guess.separator)}")
    return lines


def _format_evaluation(data: "DataConfig", split: str | None) -> str:
    """The evaluation split, or the part of the training rows that is held out."""
    if data.hold_out is None:
        return f"""\
  # Evaluated after every epoch, and the best checkpoint is kept; null: no evaluation.
  evaluate: {quote(split) if split else "null"}"""
    return f"""\
  # This part of the rows is evaluated after every epoch, and the best checkpoint is kept. Every
  # label has its share, and equal texts stay together. group_by: COLUMN keeps others together.
  hold_out: {data.hold_out:g}"""


def _format_prompt(guess: TaskGuess) -> str:
    """A plain prompt for choices, or for few classes."""
    fields = [f"{{{name}}}" for name in guess.columns if name not in ("choices", "label")]
    names = [guess.class_names.get(text, text) for text in guess.labels]
    if guess.format == "multiple_choice":
        words, answers = "Answer", [f"    answers: {quote(' {choice}')}"]
    elif guess.range is None and guess.separator is None and len(names) <= _MAX_ANSWERS:
        words = "Label"
        answers = ["    answers:", *(f"      {quote(n)}: {quote(f' {n}')}" for n in names)]
    else:
        return ""
    text = r"\n".join([*fields, f"{words}:"])
    about = "  # What `gptft prompt` asks a base that is not trained on the task."
    return "\n".join([about, "  prompt:", f'    text: "{text}"', *answers, ""])


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


def format_column(column: str | Sequence[str]) -> str:
    """Returns a column, a template or a list of columns as YAML."""
    return quote(column) if isinstance(column, str) else f"[{', '.join(map(quote, column))}]"


def quote(text: str) -> str:
    """Returns a text as a YAML scalar.

    >>> quote("no"), quote("not_entailment"), quote("1")
    ('"no"', 'not_entailment', '"1"')
    """
    if text.isascii() and _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def one_line(text: str) -> str:
    """Returns a text without line ends and control characters."""
    return "".join(c if c.isprintable() else " " for c in text)
