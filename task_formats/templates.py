"""Templates: texts with {names} that are filled from a mapping."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from task_formats.errors import UsageError, suggest

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@lru_cache(maxsize=1024)
def field_names(template: str) -> tuple[str, ...]:
    """Returns the names in braces, in order of appearance.

    >>> field_names("{premise} implies {hypothesis}; {{literal}}")
    ('premise', 'hypothesis')
    """
    names = []
    for piece in _PIECE.finditer(template):
        if piece.group() in ("{", "}") or piece.group(1) == "":
            cure = "Write {column} for a column and {{ or }} for a brace."
            raise UsageError(f"unbalanced or empty braces in {template!r}", cure=cure)
        if piece.group(1) is not None:
            names.append(piece.group(1))
    return tuple(names)


def is_template(text: str) -> bool:
    """True if the text contains a brace, so that it is not a plain name."""
    return "{" in text or "}" in text


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns the template with every `{name}` replaced; values are not templates themselves."""

    def replace(piece: re.Match[str]) -> str:
        name = piece.group(1)
        if name is None:
            return piece.group()[0]
        if name not in values:
            what = f"unknown name {name!r} in the template {template!r}"
            raise UsageError(what, cure=suggest(name, values))
        return values[name]

    return _PIECE.sub(replace, template)


def fill_pieces(template: str, values: Mapping[str, str]) -> tuple[str, ...]:
    r"""Returns the filled template in pieces, one for every name.

    A piece is a value with the text before it; the text after the last value is a piece too.

    >>> fill_pieces("{story}\n{question}", {"story": "Once.", "question": "When?"})
    ('Once.', '\nWhen?')
    """
    try:
        return tuple(
            words + (values[name] if name else "") for words, name in split_pieces(template)
        )
    except KeyError as error:
        name = error.args[0]
        what = f"unknown name {name!r} in the template {template!r}"
        raise UsageError(what, cure=suggest(name, values)) from None


@lru_cache(maxsize=1024)
def split_pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    r"""Returns the pieces of a template: the words before each name, and the name.

    >>> split_pieces("{story}\n{question} Why?")
    (('', 'story'), ('\n', 'question'), (' Why?', None))
    """
    pieces: list[tuple[str, str | None]] = []
    words, position = "", 0
    for piece in _PIECE.finditer(template):
        words += template[position : piece.start()]
        position = piece.end()
        if piece.group(1):
            pieces.append((words, piece.group(1)))
            words = ""
        else:  # a brace
            words += piece.group()[0]
    words += template[position:]
    return (*pieces, (words, None)) if words else tuple(pieces)


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """Returns a column by its exact name, or by a dotted path into mappings and lists of them.

    Raises KeyError for an unknown column.

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
