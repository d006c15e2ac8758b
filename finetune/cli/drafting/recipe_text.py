"""A recipe as commented YAML, out of a guess."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from finetune.cli.drafting.columns import Column
from finetune.cli.drafting.guesses import Guess

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*( [A-Za-z0-9_./+-]+)*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
"""What YAML, in one version or another, does not take for text."""


class Draft(NamedTuple):
    """A guess about a file, and the files that the recipe will name."""

    found: Guess
    columns: list[Column]
    rows: int
    source: Path
    train: Path
    held_out: Path | None
    target: Path


def write_recipe(draft: Draft) -> str:
    """The recipe as YAML. Its comments hold the counts, the reasons and what else could be."""
    found, folder = draft.found, draft.target.parent
    title = f"{one_line(draft.source.name)}, {draft.rows:,} rows"
    metrics = "pearson, spearman, mse" if found.range else "accuracy, f1, macro_f1, matthews"
    unused = ", ".join(column.name for column in draft.columns if column.name not in found.used)
    evaluate = quote(_relative(draft.held_out, folder)) if draft.held_out else "null"
    lines = [
        f"# Written by `gptft new` after a look at {title}.",
        "# Whatever is not said here is GPT-1's; `gptft show` writes it all out.",
        f"about: {quote(title)}",
        "task:",
        f"  # {found.reason.capitalize()}. The kinds: classification (one text),",
        "  # entailment (two texts, in this order), similarity (two texts, in either order),",
        "  # multiple_choice (a text and the choices that may follow it).",
        f"  format: {found.format}",
        "  columns:",
        *(f"    {field}: {column_text(name)}" for field, name in found.columns.items()),
        f"  # Not used: {one_line(unused) or 'none'}.",
        *_label_lines(found),
        f"  # The first one chooses the best state. Known: {metrics}.",
        f"  metrics: [{', '.join(found.metrics)}]",
        "data:",
        f"  train: {quote(_relative(draft.train, folder))}",
        *(_HELD_OUT if draft.held_out else _NO_SCORES),
        f"  evaluate: {evaluate}",
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
    "  # Better: name a file with other rows here. `gptft new --hold-out 0.1` makes one.",
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


def column_text(name: str | tuple[str, ...]) -> str:
    """A column, a template or a list of columns as YAML."""
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


def one_line(text: str) -> str:
    """A text from a file, without what would end a line or command a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
