"""Recipe values given on the command line: the common ones as flags, all of them by --set."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import typer

from task_formats import UsageError

Changes = Mapping[str, Any]
"""Dotted key to value, as `recipe_files.load_recipe` takes them."""


class Flag(NamedTuple):
    """A recipe value that has a flag of its own."""

    key: str
    type: Any
    help: str
    panel: str
    name: str = ""

    @property
    def option(self) -> str:
        """The flag as it is typed."""
        return self.name or "--" + self.key.rpartition(".")[2].replace("_", "-")

    @property
    def parameter(self) -> inspect.Parameter:
        """The flag as typer reads it from a signature."""
        info = typer.Option(self.option, help=self.help, rich_help_panel=self.panel)
        return _parameter(self.key.replace(".", "_"), Annotated[self.type | None, info], None)


_BASE, _DATA, _TRAINING = "The base", "The data", "The training"

FLAGS = (
    Flag("base.path", str, "A hub id, a local folder, or tiny, the shipped base.", _BASE, "--base"),
    Flag("base.from_scratch", bool, "Keep the base's shape and draw its weights anew.", _BASE),
    Flag("base.trust_remote_code", bool, "Run Python code that comes with the base.", _BASE),
    Flag("data.path", str, "A folder with a local copy of the data, or a hub id.", _DATA, "--data"),
    Flag("data.limit", int, "Use only the first rows of every split.", _DATA),
    Flag("data.on_bad_row", Literal["stop", "skip"], "What to do at an unusable row.", _DATA),
    Flag("train.learning_rate", float, "Peak learning rate (paper: 6.25e-5).", _TRAINING),
    Flag("train.epochs", float, "Times to go over the data (paper: 3).", _TRAINING),
    Flag("train.batch_size", int, "Examples in one update (paper: 32).", _TRAINING),
    Flag("train.lm_coefficient", float, "Weight λ of the LM loss (paper: 0.5).", _TRAINING),
    Flag("train.max_tokens", int, "Longest view in tokens (paper: 512).", _TRAINING),
    Flag("train.seed", int, "Draws the head, the dropout and the order.", _TRAINING),
    Flag("train.precision", Literal["auto", "fp32", "bf16"], "Number format.", _TRAINING),
    Flag(
        "train.layout",
        Literal["auto", "separate", "shared", "packed"],
        "How views fill rows; the result is the same.",
        _TRAINING,
    ),
    Flag("train.deterministic", bool, "The same bits every time, on a GPU too.", _TRAINING),
    Flag("train.compile", bool, "Compile the blocks: slow to start, then faster.", _TRAINING),
)

_SET = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any value of the recipe, as train.warmup=0.1. May be repeated.",
        rich_help_panel=_TRAINING,
    ),
]


def with_overrides(verb: Callable[..., Any], without: Collection[str] = ()) -> Callable[..., Any]:
    """The verb with the flags above; what they say reaches it as its argument `changes`.

    It does not get flags of the values `without`.
    """
    taken = [flag for flag in FLAGS if flag.key not in without]

    @functools.wraps(verb)
    def overridden(**given: Any) -> Any:
        flags = {flag.key: given.pop(flag.parameter.name) for flag in taken}
        settings = given.pop("settings") or []
        return verb(**given, changes=collect(flags, settings))

    own = inspect.signature(verb, eval_str=True).parameters.values()
    flags = [*(flag.parameter for flag in taken), _parameter("settings", _SET, None)]
    kept = [item for item in own if item.name != "changes"]
    overridden.__signature__ = inspect.Signature([*kept, *flags])  # type: ignore[attr-defined]
    return overridden


def collect(flags: Changes, settings: list[str], option: str = "--set") -> dict[str, Any]:
    """Flags that were given and the `key=value` texts of an option in one mapping."""
    changes = {key: value for key, value in flags.items() if value is not None}
    for key, value in changes.items():
        if value == "":
            cure = "Give its option a value, or leave it out."
            raise UsageError(f"{key} is empty", cure=cure)
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            cure = f"Write it as {option} train.epochs=5."
            raise UsageError(f"{option} {text} is not key=value", cure=cure)
        if key.strip() in changes:
            raise UsageError(f"{key.strip()} is given twice", cure="Give it once.")
        changes[key.strip()] = value
    return changes


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
