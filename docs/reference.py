"""Pages of the site that are made from the code: commands, recipes, and files outside docs/."""

import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from os.path import relpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from finetune.cli.app import COMMANDS, app
from finetune.pretraining.plan import Plan
from finetune.recipe.loading import load_recipe, shipped_recipes
from finetune.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"README.md": "start", "CHANGELOG.md": "changes", "SECURITY.md": "security"}
"""Pages outside docs/, and their names in the site."""
DESCRIBED = OUTSIDE | {"finetune/cli/commands": "commands", "finetune/recipe/schema.py": "recipes"}
"""Files and folders that a page of the site shows or describes."""
_LINK = re.compile(
    # Code comes first, in which nothing is a link; but the text of a link may be code.
    r"```.*?```|(?<!\[)`(?:[^`\n]|\n(?!\s*\n))*`|"
    r"\[(?P<shown>[^\]]*)\]\((?!https?:|mailto:|#)(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)",
    re.DOTALL,
)


def write_pages(folder: Path) -> None:
    """Writes all generated pages to a folder inside docs/; those that are equal stay as they are.

    Raises:
        ValueError: A link of a page leads nowhere.
    """
    folder.mkdir(exist_ok=True)
    pages = {"commands": describe_commands(), "recipes": describe_recipes()}
    for path, name in OUTSIDE.items():
        pages[name] = adapt_links((ROOT / path).read_text(encoding="utf-8"), ROOT / path, folder)
    pages["start"] = pages["start"].replace("# gptft\n", "# Start\n", 1)
    for name, text in pages.items():
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def adapt_links(text: str, page: Path, folder: Path | None = None) -> str:
    """Makes the relative links of a page, which lead through the repository, lead through the site.

    Links to pages stay links; the name of any other file in the repository is shown as code.

    Args:
        text: The page.
        page: Its file in the repository.
        folder: Where it stands in the site. [default: where the file is]
    """
    here = folder or page.parent

    def adapt(match: re.Match[str]) -> str:
        shown, path, anchor = match["shown"], match["path"], match["anchor"] or ""
        if path is None:
            return match[0]
        target = (page.parent / path).resolve()
        if not target.exists():
            raise ValueError(f"{page}: the link to {path} leads nowhere")
        inside = target.relative_to(ROOT).as_posix()
        if inside in DESCRIBED:
            target = ROOT / "docs" / "generated" / f"{DESCRIBED[inside]}.md"
        elif target.suffix != ".md" or target.parent != ROOT / "docs":
            return shown if "`" in shown else f"`{shown}`"
        return f"[{shown}]({Path(relpath(target, here)).as_posix()}{anchor})"

    return _LINK.sub(adapt, text)


# Commands


def describe_commands() -> str:
    """A section for each command of `gptft`, by the panels of its help."""
    group = typing.cast(TyperGroup, get_command(app))
    lines = ["# Commands", "", "`gptft COMMAND --help` prints the same in a terminal.", ""]
    names = {one.function.__name__.replace("_", "-"): one.panel for one in COMMANDS}
    for name, command in group.commands.items():
        if not command.hidden:
            names.setdefault(name, str(getattr(command, "rich_help_panel", "") or "Other"))
    for panel in dict.fromkeys(names.values()):
        lines += [f"## {panel}", ""]
        for name in (name for name, own in names.items() if own == panel):
            lines += _describe_command(f"gptft {name}", group.commands[name], 3)
    return "\n".join(lines)


def _describe_command(path: str, command: Any, level: int) -> Iterator[str]:
    yield from (f"{'#' * level} {path}", "", *_format_help(command.help or ""), "")
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from _describe_command(f"{path} {name}", inner, level + 1)
        return
    context = TyperCommand.context_class(command, info_name=path)
    usage = command.get_usage(context).removeprefix("Usage: ")
    yield from ("```text", " ".join(usage.split()), "```", "")
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            title = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or title
            panels.setdefault(panel, []).append(record)
    for panel, records in panels.items():
        yield from (f"**{panel}**", "")
        yield from _table(("name", "meaning"), records)


def _format_help(text: str) -> Iterator[str]:
    """Paragraphs of a command's help; its examples become code blocks."""
    for paragraph in text.replace("\b", "").strip().split("\n\n"):
        match = re.match(r"(Examples?:)\s*(.*)", paragraph, re.DOTALL)
        if match:
            commands = [line.strip() for line in match[2].splitlines() if line.strip()]
            yield from ("```bash", *commands, "```", "")
        else:
            yield from (escape(paragraph), "")


# Recipes


def describe_recipes() -> str:
    """The shipped recipes, and every key of recipes and of plans for pre-training."""
    lines = ["# Recipes", "", *_INTRODUCTION, "## Shipped recipes", ""]
    about = [(f"`{name}`", load_recipe(name).about or "") for name in shipped_recipes()]
    lines += _table(("name", "about"), about, code=False)
    lines += ["## Keys", ""]
    lines += _describe_model(Recipe, "", 3)
    lines += [
        "## Keys of pre-training plans",
        "",
        "[Pre-training](../pretraining.md) uses them.",
        "",
    ]
    lines += _describe_model(Plan, "", 3)
    return "\n".join(lines)


_INTRODUCTION = [
    "A recipe is a YAML file: what a row is, where the rows are, which base is trained, and how. "
    "`gptft new FILE` writes one for your own data, `gptft show NAME` prints one with every value, "
    "and `--set train.epochs=5` replaces one value. `gptft schema` prints all of this as a JSON "
    "schema for editors.",
    "",
    "Keys marked with * may change when a run is resumed.",
    "",
]


def _describe_model(model: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    """A table of the keys of a model, and a section for each of the models in it."""
    inner = {
        name: list(find_models(field.annotation)) for name, field in model.model_fields.items()
    }
    rows = [
        _describe_field(f"{prefix}{name}", field)
        for name, field in model.model_fields.items()
        if prefix or not inner[name]  # The sections of a whole recipe have no row.
    ]
    if rows:
        yield from _table(("key", "default", "meaning"), rows, code=False)
    for name, models in inner.items():
        mapped = typing.get_origin(model.model_fields[name].annotation) is dict
        key = f"{prefix}{name}{'.NAME' if mapped else ''}"
        for one in models:
            about = " ".join((one.__doc__ or "").split())
            yield from (f"{'#' * level} {key}", "", escape(about), "")
            yield from _describe_model(one, f"{key}.", min(level + 1, 6))


def find_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the models in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from find_models(inner)


def _describe_field(key: str, field: FieldInfo) -> tuple[str, str, str]:
    extra = field.json_schema_extra
    mark = " *" if isinstance(extra, Mapping) and extra.get("resume_safe") else ""
    meaning = " ".join((field.description or "").split())
    if choices := _choices(field.annotation):
        meaning += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    if field.is_required():
        return f"`{key}`{mark}", "required", escape(meaning)
    default = field.get_default(call_default_factory=True)
    shown = "see below" if isinstance(default, BaseModel) else f"`{_format_default(default)}`"
    return f"`{key}`{mark}", shown, escape(meaning)


def _format_default(value: Any) -> str:
    """A value as it stands in YAML."""
    if isinstance(value, str) and value.isidentifier():
        return value
    return json.dumps(value, ensure_ascii=False)


def _choices(annotation: Any) -> list[str]:
    """The words that a field accepts."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(word) for word in typing.get_args(annotation)]
    return [word for inner in typing.get_args(annotation) for word in _choices(inner)]


# Markdown


def _table(header: Iterable[str], rows: Iterable[Iterable[str]], code: bool = True) -> list[str]:
    """A table, whose first column is code by default."""
    names = list(header)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for first, *others in rows:
        cells = [f"`{first}`", *map(escape, others)] if code else [first, *others]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return [*lines, ""]


def escape(text: str) -> str:
    """Plain text as Markdown; code between backticks stays as it is."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([*_<>\[\]{}$#])", r"\\\1", piece)
        for piece in pieces
    )
