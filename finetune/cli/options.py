"""Options that several commands share, and recipe values given as flags or with --set."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from typer import Argument, Option
from typer.core import TyperCommand

from task_formats import UsageError

Overrides = Mapping[str, Any]
"""Dotted key to value, as `finetune.recipe.loading.load_recipe` takes them."""

_TASK_HELP = "A shipped recipe, a YAML file, or module:attribute."
BASE_HELP = "A Hugging Face id, a local folder, a run directory, or tiny."
_TASK = "A shipped recipe, a YAML file, or module:attribute."
_DATA = "Local folder with the data set, or a Hugging Face id."
_TRUST = "Run Python code that comes with the base."
_PRECISIONS = Literal["auto", "fp32", "bf16"]
_MAX_SEEDS = 1000
_PRECISION = "Numerical precision."

TaskName = Annotated[str, Option("--task", "-t", help=_TASK)]
TaskArgument = Annotated[str, Argument(metavar="TASK", help=_TASK)]
PythonTask = Annotated[
    str | None, Option("--task", "-t", help="module:attribute of a task defined in Python.")
]
Run = Annotated[Path, Argument(metavar="RUN", help="Run directory, such as runs/rte.")]
Base = Annotated[str | None, Option("--base", help=BASE_HELP)]
Data = Annotated[str | None, Option(help=_DATA)]
Output = Annotated[
    str, Option("--output", "-o", metavar="OUT", help="Output file; - is standard output.")
]
Resume = Annotated[bool, Option("--resume", help="Resume the run in the output directory.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Overwrite the run.")]
NumProcesses = Annotated[
    int, Option("--num-processes", min=1, metavar="N", help="Number of processes, one per GPU.")
]
Settings = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Set any other value. May be repeated."),
]
Device = Annotated[str | None, Option(help="cpu, cuda or cuda:1.", show_default="the best")]
Precision = Annotated[_PRECISIONS | None, Option(help=_PRECISION)]
Trust = Annotated[bool, Option("--trust-remote-code", help=_TRUST)]


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
    name: str = ""

    @property
    def option(self) -> str:
        """The flag as it is typed."""
        return self.name or "--" + self.key.rpartition(".")[2].replace("_", "-")

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter from which typer makes the flag."""
        panel = _PANELS[self.key.partition(".")[0]]
        info = Option(self.option, help=self.help, rich_help_panel=panel)
        return _parameter(self.key.replace(".", "_"), Annotated[self.type | None, info])


_PANELS = {"base": "Base model", "data": "Data", "train": "Training"}
_LAYOUTS = Literal["auto", "separate", "shared", "packed"]

RECIPE_FLAGS = (
    RecipeFlag("base.path", str, BASE_HELP, "--base"),
    RecipeFlag("base.from_scratch", bool, "Train from random weights of the same shape."),
    RecipeFlag("base.trust_remote_code", bool, _TRUST),
    RecipeFlag("data.path", str, _DATA, "--data"),
    RecipeFlag("data.limit", int, "Use only the first rows of each split."),
    RecipeFlag("data.on_bad_row", Literal["stop", "skip"], "Action on an unusable row."),
    RecipeFlag("train.learning_rate", float, "Peak learning rate (paper: 6.25e-5)."),
    RecipeFlag("train.epochs", float, "Number of epochs (paper: 3)."),
    RecipeFlag("train.batch_size", int, "Batch size in examples (paper: 32)."),
    RecipeFlag("train.lm_coefficient", float, "Weight λ of the LM loss (paper: 0.5)."),
    RecipeFlag("train.max_tokens", int, "Maximum sequence length in tokens (paper: 512)."),
    RecipeFlag("train.seed", int, "Random seed."),
    RecipeFlag("train.precision", _PRECISIONS, _PRECISION),
    RecipeFlag("train.layout", _LAYOUTS, "How sequences are batched; the result is the same."),
    RecipeFlag("train.deterministic", bool, "Use deterministic GPU kernels."),
    RecipeFlag("train.compile", bool, "Compile the model: slow start, then faster."),
)

_SET_HELP = "Set any recipe value, such as train.warmup=0.1. May be repeated."
_RecipeSettings = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help=_SET_HELP, rich_help_panel=_PANELS["train"]),
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


def refuse_options(options: Mapping[str, object], problem: str, cure: str) -> None:
    """Raises UsageError if one of the options was given."""
    for option, value in options.items():
        if value not in (None, False, [], ()):
            raise UsageError(f"{option} {problem}", cure=cure)


def parse_seeds(text: str) -> list[int]:
    """Parses seeds, without repetition.

    >>> parse_seeds("0-2,7,7")
    [0, 1, 2, 7]

    Raises:
        UsageError: The text is not a list of seeds, or it has more than 1000.
    """
    from finetune.recipe.schema import SEED_LIMIT

    try:
        bounds = [tuple(map(int, part.split("-", 1))) for part in text.split(",")]
        if any(not ends[0] <= ends[-1] < SEED_LIMIT for ends in bounds):
            raise ValueError("a range is empty or too large")
        if sum(ends[-1] - ends[0] + 1 for ends in bounds) > _MAX_SEEDS:
            raise ValueError("there are too many seeds")
    except ValueError:
        cure = f"Write them as 0-4 or 0,3,7: at most {_MAX_SEEDS}, each below {SEED_LIMIT}."
        raise UsageError(f"invalid seeds {text!r}", where="--seeds", cure=cure) from None
    ranges = (range(ends[0], ends[-1] + 1) for ends in bounds)
    return list(dict.fromkeys(chain.from_iterable(ranges)))
