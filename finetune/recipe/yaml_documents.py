"""YAML files as plain values with line numbers, and back.

ruamel.yaml parses and writes. Scalars are those of YAML 1.2's core schema; tags, anchors and
aliases are refused.
"""

import io
import re
from collections.abc import Iterator, Mapping
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

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
_MAX_LINE = 80
_SCALARS = (  # YAML 1.2.2, section 10.3.2
    (re.compile(r"|~|null|Null|NULL"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT"),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+"), lambda text: int(text, 0)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (
        re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        lambda text: float(text.replace(".", "")),
    ),
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
    """Reads a YAML file whose content is a mapping.

    Raises:
        UsageError: The file cannot be read, is larger than 256 KiB, or is not valid.
    """
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
    yaml.representer.add_representer(type(None), _represent_null)
    yaml.dump(_to_ruamel(data, depth=0), stream)
    return stream.getvalue()


def compare_documents(old: str, new: str) -> list[str]:
    """Lists the differences of two YAML texts.

    >>> compare_documents("train: {seed: 1, epochs: 3}", "train: {seed: 1, epochs: 5}")
    ['train.epochs was 3, is 5']
    """
    before, after = (dict(_flatten(parse_document(text).data, "")) for text in (old, new))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key} was {before.get(key)!r}, is {after.get(key)!r}" for key in changed]


def _flatten(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        yield from _flatten(inner, f"{key}.{name}" if key else str(name))


def _parse(text: str, where: str) -> Document:
    try:
        return _Parser(text, where).parse()
    except MarkedYAMLError as error:
        what, cure = (
            error.problem or "not valid YAML",
            "Check the YAML: indentation, colons, quotes.",
        )
        place = _format_place(where, error.problem_mark or error.context_mark)
    except UsageError:
        raise
    except (YAMLError, ValueError, OverflowError) as error:  # a character that is not allowed
        what, place, cure = str(error).splitlines()[0], where, "Check the characters and escapes."
    raise UsageError(what, where=place, cure=cure)


class _Parser:
    """Builds plain values from the events of ruamel's parser."""

    def __init__(self, text: str, where: str) -> None:
        self._events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)
        self._where = where
        self._lines: dict[KeyPath, int | None] = {}

    def parse(self) -> Document:
        data = None
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), events.DocumentStartEvent):
            data = self._value(next(self._events), ())
            next(self._events)  # the end of the document
            if not isinstance(event := next(self._events), events.StreamEndEvent):
                raise self._error(event, "another document", "Keep one document.")
        return Document(data, self._lines, self._where)

    def _value(self, event: Any, path: KeyPath) -> Any:
        if isinstance(event, events.AliasEvent) or event.anchor:
            raise self._error(event, "an anchor or alias (& or *)", "Write the value, or quote it.")
        if event.tag not in (None, "!"):
            raise self._error(event, f"the tag {event.tag!r}", "Recipes contain plain values only.")
        if len(path) >= MAX_DEPTH:
            raise self._error(event, f"more than {MAX_DEPTH} levels", "Remove nested brackets.")
        if isinstance(event, events.ScalarEvent):
            return self._scalar(event)
        return self._collection(path, isinstance(event, events.MappingStartEvent))

    def _scalar(self, event: events.ScalarEvent) -> Any:
        text: str = event.value
        if not event.implicit[0]:  # quoted
            return text
        try:
            return _parse_scalar(text)
        except ValueError:  # Python reads no integer of more than 4300 digits
            raise self._error(event, f"a number of {len(text)} digits", "Quote text.") from None

    def _collection(self, path: KeyPath, is_mapping: bool) -> dict[Any, Any] | list[Any]:
        items: dict[Any, Any] = {}
        while not isinstance(event := next(self._events), _END):
            key = self._value(event, path) if is_mapping else len(items)
            if is_mapping and not isinstance(event, events.ScalarEvent):
                raise self._error(event, "a key that is not a scalar", "Write key: value.")
            if key in items:
                raise self._error(event, f"the key {key!r} twice", "Keep one of them.")
            inner = (*path, key)
            self._lines[inner] = event.start_mark.line + 1
            items[key] = self._value(next(self._events) if is_mapping else event, inner)
        return items if is_mapping else list(items.values())

    def _error(self, event: Any, what: str, cure: str) -> UsageError:
        place = _format_place(self._where, event.start_mark)
        return UsageError(f"found {what}", where=place, cure=cure)


def _parse_scalar(text: str) -> Any:
    return next((convert(text) for form, convert in _SCALARS if form.fullmatch(text)), text)


def _format_place(where: str, mark: Any) -> str:
    line = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return ", ".join(filter(None, (where, line)))


def _represent_null(representer: Any, value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _to_ruamel(value: Any, depth: int) -> Any:
    """Values with their style: short inner collections of scalars stand in one line."""
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and not any(
            form.fullmatch(value) for form, _ in _SCALARS
        )
        return value if is_plain else DoubleQuotedScalarString(value)
    if not isinstance(value, Mapping | list | tuple):
        return value
    result: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        result, inner = CommentedMap(), list(value.values())
        result.update({_to_ruamel(k, depth): _to_ruamel(v, depth + 1) for k, v in value.items()})
    else:
        result, inner = CommentedSeq(_to_ruamel(item, depth + 1) for item in value), list(value)
    is_nested = any(isinstance(item, Mapping | list | tuple) for item in inner)
    if not value or (depth > 1 and not is_nested and len(repr(value)) <= _MAX_LINE):
        result.fa.set_flow_style()
    return result
