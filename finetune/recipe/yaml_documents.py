"""YAML as recipes use it: plain values of YAML 1.2's core schema, and the line each stands on."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from task_formats import UsageError

Path = tuple[str | int | float | bool | None, ...]
"""The keys and indices that lead to a value."""

MAX_DEPTH = 32
"""A text of nothing but brackets must not exhaust the stack."""

# YAML 1.2, section 10.3.2. PyYAML alone reads `3e-5` as text, `yes` as true, `1:30` as 90 and
# `2001-01-01` as a date.
_CORE = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class Document(NamedTuple):
    """What a YAML text holds, and where."""

    data: Any
    lines: Mapping[Path, int]
    """The line of every key and item, counted from 1."""


class _Loader(yaml.SafeLoader):
    """Plain values only: no tags, no anchors, no merge keys, no repeated keys."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _fault(event, "an anchor or alias (& or *)", "Write the value out, or quote it.")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise _fault(event, f"the tag {tag!r}", "Recipes hold plain values only.")
        if self.depth >= MAX_DEPTH:
            raise _fault(event, f"more than {MAX_DEPTH} levels", "Recipes are at most a few deep.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Nothing: `<<` is a key like any other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _fault(key_node, "a key that is not one word", "Write key: value.")
            key = self.construct_object(key_node)
            if key in found:
                raise _fault(key_node, f"the key {key!r} a second time", "Keep one of them.")
            found[key] = self.construct_object(value_node, deep=True)
        return found

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = node.value
        if len(text) > 40:
            raise _fault(node, f"a number of {len(text)} digits", "Quote it if it is text.")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Section(dict[str, Any]):
    """A mapping that is written with a line for every key."""


class _Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for something else than text."""

    def represent_section(self, section: _Section) -> yaml.Node:
        return self.represent_mapping("tag:yaml.org,2002:map", section, flow_style=False)

    def represent_text(self, text: str) -> yaml.Node:
        # Other styles would fold line ends and turn rare ones into blanks.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(_Section, _Dumper.represent_section)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _tag, re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)


def parse_document(text: str, where: str) -> Document:
    """A YAML text that is one mapping; UsageError with file and line where it is not."""
    document = _parse(text, where)
    if document.data is None:
        raise UsageError("the recipe is empty", where=where, cure="`gptft new` writes one.")
    if not isinstance(document.data, dict):
        raise UsageError(
            f"the recipe is {describe_value(document.data)}, not a mapping",
            where=where,
            cure="It has the keys about, task, base, data and train.",
        )
    return document


def parse_value(text: str) -> Any:
    """A number, list, mapping or the like as YAML reads it; any other text as it is.

    Text is taken from YAML only when quoted: nobody expects `--set about="five # six"` to lose
    its end.

    >>> parse_value("3e-5"), parse_value("{0: no}"), parse_value("five # six"), parse_value("null")
    (3e-05, {0: 'no'}, 'five # six', None)
    """
    try:
        value = _parse(text, "").data
    except UsageError:
        return text
    return text if isinstance(value, str) and text[:1] not in ("'", '"') else value


def write_document(data: Mapping[str, Any]) -> str:
    """YAML that `parse_document` reads back equal: a line for every key of the parts."""
    parts = {
        key: _Section(_plain(value)) if isinstance(value, Mapping) else value
        for key, value in data.items()
    }
    return yaml.dump(
        _Section(parts),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )


def compare_documents(old: str, new: str) -> list[str]:
    """What two texts say differently: "train.epochs was 3, is 5".

    >>> compare_documents("train: {seed: 1, epochs: 3}", "train: {seed: 1, epochs: 5}")
    ['train.epochs was 3, is 5']
    """
    before, after = (dict(_leaves(parse_document(text, "").data, "")) for text in (old, new))
    return [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def describe_value(value: Any) -> str:
    """A value of YAML in a sentence.

    >>> describe_value([1, 2]), describe_value("many")
    ('the list [1, 2]', "'many'")
    """
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:56]} ..."
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {shown}"
        case Mapping():
            return f"the mapping {shown}"
        case list() | tuple():
            return f"the list {shown}"
    return shown


def _parse(text: str, where: str) -> Document:
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        return Document(loader.construct_document(node), dict(_find_lines(loader, node, ())))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(
            error.problem or "not YAML",
            where=", ".join(filter(None, (where, line))),
            cure=error.note or "This is not valid YAML: look at indents, colons and quotes there.",
        ) from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        what = str(error).splitlines()[0]
        raise UsageError(what, where=where, cure="Remove the character.") from None
    except (ValueError, OverflowError) as error:  # "\U00110000", handed to chr()
        raise UsageError(f"not YAML: {error}", where=where, cure="Look at its escapes.") from None
    finally:
        if loader is not None:
            loader.dispose()


def _fault(at: Any, what: str, cure: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=f"found {what}", problem_mark=at.start_mark, note=cure)


def _find_lines(loader: _Loader, node: yaml.Node, path: Path) -> Iterator[tuple[Path, int]]:
    if isinstance(node, yaml.MappingNode):
        inner = [(loader.construct_object(key), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(index, value, value) for index, value in enumerate(node.value)]
    else:
        return
    for name, start, value in inner:
        yield (*path, name), start.start_mark.line + 1
        yield from _find_lines(loader, value, (*path, name))


def _plain(value: Any) -> Any:
    """Tuples as lists, all through."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
