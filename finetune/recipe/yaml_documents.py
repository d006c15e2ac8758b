"""YAML 1.2 files as plain values with line numbers, and back; tags and aliases are refused."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML, events
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from finetune.storage.files import decode_utf8, explain_os_errors
from task_formats import UsageError

KeyPath = tuple[str | int | float | bool | None, ...]
"""The keys and indices that lead to a value."""

MAX_BYTES = 2**20
MAX_DEPTH = 32
_MAX_LINE = 80
_SCALARS = (  # YAML 1.2.2, section 10.3.2
    (re.compile(r"|~|null|Null|NULL"), lambda s: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda s: s[0] in "tT"),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+"), lambda s: int(s, 0)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda s: float(s.replace(".", ""))),
)
_PLAIN = re.compile(r"[A-Za-z/]([\w ./+-]*[\w./])?")
"""Text that is written without quotes."""
_END = (events.MappingEndEvent, events.SequenceEndEvent)


class Document(NamedTuple):
    """The values of a YAML file and where they stand."""

    data: Any
    lines: Mapping[KeyPath, int | None] = {}
    """The line of every key and item, from 1; None for values that are not from the file."""
    where: str = ""
    """The file, as messages name it."""


def read_document(path: Path) -> Document:
    """Reads a YAML file whose content is a mapping; UsageError if it is not valid or too large."""
    with explain_os_errors(path), path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        what = f"larger than {MAX_BYTES // 1024} KiB, the maximum for a recipe"
        raise UsageError(what, where=str(path), cure="A recipe names the data; is this the data?")
    return parse_document(decode_utf8(content, str(path)), str(path))


def parse_document(text: str, where: str = "") -> Document:
    """Parses a YAML text whose content is a mapping; UsageError with file and line otherwise."""
    document = _parse(text, where)
    if not isinstance(document.data, dict):
        what = f"the file must contain a mapping (got {format_value(document.data)})"
        raise UsageError(what, where=where, cure="`gptft new` writes a recipe.")
    return document


def parse_value(text: str) -> Any:
    """Returns a number, list, mapping etc. as YAML reads it, and any other text unchanged.

    >>> parse_value("3e-5"), parse_value("{0: no}"), parse_value("five # six"), parse_value("null")
    (3e-05, {0: 'no'}, 'five # six', None)
    """
    try:
        value = _parse(text, "").data
    except UsageError:
        return text
    # Unquoted text is not YAML: a "#" does not start a comment.
    return text if isinstance(value, str) and text[:1] not in ("'", '"') else value


def format_value(value: Any) -> str:
    """Returns a value for a message, at most 60 characters."""
    names = {"None": "null", "True": "true", "False": "false"}
    text = names.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:56]} ..."


def write_document(data: Mapping[str, Any]) -> str:
    """Returns YAML that `parse_document` reads back equal, with a line for every key."""
    yaml, stream = YAML(), io.StringIO()
    yaml.width = MAX_BYTES  # folded lines do not always read back equal
    null = ("tag:yaml.org,2002:null", "null")
    yaml.representer.add_representer(type(None), lambda writer, _: writer.represent_scalar(*null))
    yaml.dump(_to_ruamel(data, depth=0), stream)
    return stream.getvalue()


def _parse(text: str, where: str) -> Document:
    try:
        parser = _Parser(text)
        return Document(parser.parse(), parser.lines, where)
    # A number of more than 4300 digits is a ValueError, an escape beyond Unicode an OverflowError.
    except (YAMLError, ValueError, OverflowError) as error:
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    cure = "Use plain YAML: each key once, no tags or aliases, quotes around special characters."
    raise UsageError(what, where=", ".join(filter(None, (where, place))), cure=cure)


class _Parser:
    """Builds plain values from the events of ruamel's parser."""

    def __init__(self, text: str) -> None:
        self.lines: dict[KeyPath, int | None] = {}
        self._events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)

    def parse(self) -> Any:
        next(self._events)  # the start of the stream
        if not isinstance(next(self._events), events.DocumentStartEvent):
            return None
        data = self._value(next(self._events), ())
        next(self._events)  # the end of the document
        event = next(self._events)
        _refuse(not isinstance(event, events.StreamEndEvent), event, "another document")
        return data

    def _value(self, event: Any, path: KeyPath) -> Any:
        is_alias = isinstance(event, events.AliasEvent) or event.anchor
        _refuse(is_alias, event, "an anchor or alias (& or *)")
        _refuse(event.tag not in (None, "!"), event, f"the tag {event.tag!r}")
        _refuse(len(path) >= MAX_DEPTH, event, f"more than {MAX_DEPTH} levels")
        if isinstance(event, events.ScalarEvent):
            return _parse_scalar(event.value) if event.implicit[0] else event.value
        is_mapping = isinstance(event, events.MappingStartEvent)
        items: dict[Any, Any] = {}
        while not isinstance(event := next(self._events), _END):
            key = self._value(event, path) if is_mapping else len(items)
            is_nested = is_mapping and not isinstance(event, events.ScalarEvent)
            _refuse(is_nested, event, "a key that is not a scalar")
            _refuse(key in items, event, f"the key {key!r} twice")
            inner = (*path, key)
            self.lines[inner] = event.start_mark.line + 1
            items[key] = self._value(next(self._events) if is_mapping else event, inner)
        return items if is_mapping else list(items.values())


def _refuse(condition: Any, event: Any, what: str) -> None:
    if condition:
        raise MarkedYAMLError(problem=f"found {what}", problem_mark=event.start_mark)


def _parse_scalar(text: str) -> Any:
    return next((convert(text) for form, convert in _SCALARS if form.fullmatch(text)), text)


def _to_ruamel(value: Any, depth: int) -> Any:
    """Values with their style: short inner collections of scalars stand in one line."""
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and _parse_scalar(value) == value
        return value if is_plain else DoubleQuotedScalarString(value)
    if not isinstance(value, Mapping | list | tuple):
        return value
    result: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        inner: Iterable[Any] = value.values()
        result = CommentedMap(
            (_to_ruamel(key, depth), _to_ruamel(item, depth + 1)) for key, item in value.items()
        )
    else:
        inner, result = value, CommentedSeq(_to_ruamel(item, depth + 1) for item in value)
    is_flat = not any(isinstance(item, Mapping | list | tuple) for item in inner)
    if not value or (depth > 1 and is_flat and len(repr(value)) <= _MAX_LINE):
        result.fa.set_flow_style()
    return result
