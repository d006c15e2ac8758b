"""Texts with named holes, filled from a mapping and from nothing else."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from task_formats.errors import UsageError, suggest

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def names(template: str) -> tuple[str, ...]:
    """The names in braces, in order of appearance.

    >>> names("{premise} implies {hypothesis}; {{literal}}")
    ('premise', 'hypothesis')
    """
    found = []
    for piece in _PIECE.finditer(template):
        if piece.group() in ("{", "}") or piece.group(1) == "":
            raise UsageError(
                f"unbalanced or empty braces in {template!r}",
                cure="Write {column} for a column and {{ or }} for a brace.",
            )
        if piece.group(1) is not None:
            found.append(piece.group(1))
    return tuple(found)


def is_template(text: str) -> bool:
    """True when the text has a brace, so that it is more than a plain name."""
    return "{" in text or "}" in text


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with every `{name}` replaced; values are never read as templates themselves.

    Attribute and index access do not exist here: unlike `str.format`, a name is only a name.
    """

    def replace(piece: re.Match[str]) -> str:
        name = piece.group(1)
        if name is None:
            return piece.group()[0]
        if name not in values:
            raise UsageError(f"{template!r} names {name!r}", cure=suggest(name, values))
        return values[name]

    return _PIECE.sub(replace, template)


def fill_pieces(template: str, values: Mapping[str, str]) -> tuple[str, ...]:
    r"""The filled template, cut so that every hole stands in a piece of its own.

    What stands before a hole goes with it; what stands behind the last one is a piece itself.
    The pieces joined are what `fill` gives.

    >>> fill_pieces("{story}\n{question}", {"story": "Once.", "question": "When?"})
    ('Once.', '\\nWhen?')
    """
    ends = [0, *(piece.end() for piece in _PIECE.finditer(template) if piece.group(1)), None]
    parts = (template[start:end] for start, end in pairwise(ends))
    return tuple(fill(part, values) for part in parts if part)


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """A column by its exact name, or by a dotted path into nested mappings.

    A list of mappings along the path gives the list of what each holds.

    >>> look_up({"choices": [{"text": "yes"}, {"text": "no"}]}, "choices.text")
    ['yes', 'no']
    """
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    if not rest or head not in row:
        raise KeyError(name)
    inner = row[head]
    if isinstance(inner, Mapping):
        return look_up(inner, rest)
    if isinstance(inner, list | tuple) and all(isinstance(item, Mapping) for item in inner):
        return [look_up(item, rest) for item in inner]
    raise KeyError(name)
