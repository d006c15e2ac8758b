"""Options that several commands share, and recipe values given as flags or with --set."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from typer.core import TyperCommand

from task_formats import UsageError

Overrides = Mapping[str, Any]
"""Dotted key to value, as `finetune.recipe.loading.load_recipe` takes them."""

_TASK_HELP = "A shipped recipe, a YAML file, or module:attribute."
BASE_HELP = "A Hugging Face id, a local folder, a run directory, or tiny."
_DATA_HELP = "Local folder with the data set, or a Hugging Face id."
_TRUST_HELP = "Run Python code that comes with the base."
_PRECISIONS = Literal["auto", "fp32", "bf16"]

TaskName = Annotated[str, typer.Option("--task", "-t", help=_TASK_HELP)]
TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help=_TASK_HELP)]
PythonTask = Annotated[
    str | None,
    typer.Option("--task", "-t", help="module:attribute of a task defined in Python."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, such as runs/rte.")]
Base = Annotated[str | None, typer.Option("--base", help=BASE_HELP)]
Data = Annotated[str | None, typer.Option(help=_DATA_HELP)]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder", "-o", metavar="FOLDER", help="Output directory.", show_default="runs/TASK"
    ),
]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="OUT", help="Output file; - is standard output."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in the output directory.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Overwrite the run.")]
NumProcesses = Annotated[
    int,
    typer.Option(
        "--num-processes", min=1, metavar="N", help="Number of processes, one for each GPU."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any other value. May be repeated."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda or cuda:1.", show_default="best available"),
]
Precision = Annotated[_PRECISIONS | None, typer.Option(help="Numerical precision.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help=_TRUST_HELP)]


class MultiValueCommand(TyperCommand):
    """A command whose repeatable options take several values: `--shots 0 4 32`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats the option's name before each further value."""
        names = {name for item in self.params if getattr(item, "multiple", 0) for name in item.opts}
        return super().parse_args(ctx, repeat_option_names(args, names))


def repeat_option_names(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Repeats each option of `names` before every one of its values.

    >>> repeat_option_names(["--shots", "0", "4", "--plot"], {"--shots"})
    ['--shots', '0', '--shots', '4', '--plot']
    """
    result: list[str] = []
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            option, values = argument if argument in names else "", 0
        else:
            result += [option] if option and values else []
            values += 1
        result.append(argument)
    return result


class RecipeFlag(NamedTuple):
    """A recipe value with its own flag."""

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
        """The parameter from which typer makes the flag."""
        info = typer.Option(self.option, help=self.help, rich_help_panel=self.panel)
        return _parameter(self.key.replace(".", "_"), Annotated[self.type | None, info])


_BASE, _DATA, _TRAINING = "Base model", "Data", "Training"

RECIPE_FLAGS = (
    RecipeFlag("base.path", str, BASE_HELP, _BASE, "--base"),
    RecipeFlag("base.from_scratch", bool, "Train from random weights of the same shape.", _BASE),
    RecipeFlag("base.trust_remote_code", bool, _TRUST_HELP, _BASE),
    RecipeFlag("data.path", str, _DATA_HELP, _DATA, "--data"),
    RecipeFlag("data.limit", int, "Use only the first rows of each split.", _DATA),
    RecipeFlag("data.on_bad_row", Literal["stop", "skip"], "Action on an unusable row.", _DATA),
    RecipeFlag("train.learning_rate", float, "Peak learning rate (paper: 6.25e-5).", _TRAINING),
    RecipeFlag("train.epochs", float, "Number of epochs (paper: 3).", _TRAINING),
    RecipeFlag("train.batch_size", int, "Batch size in examples (paper: 32).", _TRAINING),
    RecipeFlag("train.lm_coefficient", float, "Weight λ of the LM loss (paper: 0.5).", _TRAINING),
    RecipeFlag(
        "train.max_tokens", int, "Maximum sequence length in tokens (paper: 512).", _TRAINING
    ),
    RecipeFlag("train.seed", int, "Random seed.", _TRAINING),
    RecipeFlag("train.precision", _PRECISIONS, "Numerical precision.", _TRAINING),
    RecipeFlag(
        "train.layout",
        Literal["auto", "separate", "shared", "packed"],
        "How sequences are batched; the result is the same.",
        _TRAINING,
    ),
    RecipeFlag("train.deterministic", bool, "Use deterministic GPU kernels.", _TRAINING),
    RecipeFlag("train.compile", bool, "Compile the model: slow start, then faster.", _TRAINING),
)

_RecipeSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any recipe value, such as train.warmup=0.1. May be repeated.",
        rich_help_panel=_TRAINING,
    ),
]


def with_recipe_flags(
    command: Callable[..., Any], without: Collection[str] = ()
) -> Callable[..., Any]:
    """Adds RECIPE_FLAGS and --set to a command, which receives them as its argument `overrides`.

    Args:
        command: A typer command with a parameter `overrides`.
        without: Keys of flags to leave out.
    """
    flags = [flag for flag in RECIPE_FLAGS if flag.key not in without]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> Any:
        values = {flag.key: arguments.pop(flag.parameter.name) for flag in flags}
        settings = arguments.pop("settings") or []
        return command(**arguments, overrides=collect_overrides(values, settings))

    parameters = [
        *inspect.signature(command, eval_str=True).parameters.values(),
        *(flag.parameter for flag in flags),
        _parameter("settings", _RecipeSettings),
    ]
    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter for parameter in parameters if parameter.name != "overrides"]
    )
    return wrapper


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def collect_overrides(
    flags: Overrides, settings: Sequence[str], option: str = "--set"
) -> dict[str, Any]:
    """Merges flags and KEY=VALUE settings into one mapping.

    Args:
        flags: Dotted key to value; None where the flag was not given.
        settings: Texts of the form KEY=VALUE.
        option: The option that gave the settings, for messages.

    Raises:
        UsageError: A flag is empty, a setting is not KEY=VALUE, or a key is given twice.
    """
    overrides = {key: value for key, value in flags.items() if value is not None}
    for key, value in overrides.items():
        if value == "":
            cure = "Give the option a value, or leave it out."
            raise UsageError(f"{key} is empty", cure=cure)
    for text in settings:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            cure = f"Write it as {option} train.epochs=5."
            raise UsageError(f"{option} {text} is not key=value", cure=cure)
        if key in overrides:
            raise UsageError(f"{key} is given twice", cure="Give it once.")
        overrides[key] = value
    return overrides
