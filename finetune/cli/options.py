"""Options that several commands share, and recipe values given as flags or with --set."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option
from typer.core import TyperCommand

from finetune.cli.console import set_verbosity
from task_formats import UsageError

Overrides = Mapping[str, Any]
"""Dotted key to value, as `finetune.recipe.loading.load_recipe` takes them."""

BASE_HELP = "A Hugging Face id, a folder, a run, a GGUF file, tiny, or smollm2-135m."
_TASK = "A shipped recipe, a YAML file, or module:attribute."
_DATA = "Local folder with the data set, a file of splits, or a Hugging Face id."
_TRUST = "Run Python code that comes with the base."
_MAX_SEEDS = 1000


def complete_task(incomplete: str) -> list[str]:
    """Names of shipped recipes, for the completion of the shell."""
    from finetune.recipe.loading import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


TaskName = Annotated[str, Option("--task", "-t", help=_TASK, autocompletion=complete_task)]
TASK_OR_RUN_HELP = f"{_TASK[:-1]}, or a run directory."
TaskOrRun = Annotated[
    str, Argument(metavar="TASK|RUN", help=TASK_OR_RUN_HELP, autocompletion=complete_task)
]
TaskArgument = Annotated[str, Argument(metavar="TASK", help=_TASK, autocompletion=complete_task)]
PythonTask = Annotated[
    str | None, Option("--task", "-t", help="module:attribute of a task defined in Python.")
]
Run = Annotated[Path, Argument(metavar="RUN", help="Run directory, such as runs/rte.")]
Data = Annotated[str | None, Option(help=_DATA)]
Output = Annotated[
    str, Option("--output", "-o", metavar="OUT", help="Output file; - is standard output.")
]
Resume = Annotated[bool, Option("--resume", help="Resume the run in the output directory.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Overwrite the run.")]
NumProcesses = Annotated[
    int, Option("--num-processes", min=1, metavar="N", help="Number of processes, one per GPU.")
]
Track = Annotated[
    list[str] | None,
    Option("--track", metavar="TRACKER", help="Log to tensorboard, trackio, wandb or mlflow."),
]
Device = Annotated[str | None, Option(help="cpu, cuda or cuda:1.", show_default="the best")]
Trust = Annotated[bool, Option("--trust-remote-code", help=_TRUST)]
Calibrated = Annotated[
    bool, Option("--calibrated", help="Divide the logits by the temperature of the run.")
]
Precision = Annotated[
    Literal["fp32", "bf16"] | None,
    Option("--precision", help="Precision of the computation.", show_default="of the run"),
]
Folder = Annotated[
    Path | None, Option("--folder", "-o", help="Output directory.", show_default="runs/NAME")
]


class MultiValueCommand(TyperCommand):
    """A command whose options with a metavar such as `K ...` take several values.

    `--shots 0 4 32` means `--shots 0 --shots 4 --shots 32`. A KEY=VALUE is followed by further ones
    only: `--set train.epochs=5 train.seed=1 rte` ends with an argument.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeats the option's name before each further value."""
        several = [item for item in self.params if str(item.metavar).endswith(" ...")]
        names = {name for item in several for name in item.opts}
        words: list[str] = []
        option = ""
        for word in args:
            if word.startswith("-"):
                option = word if word in names else ""
            elif option and words[-1] != option:
                if "=" in words[-1] and "=" not in word:
                    option = ""
                else:
                    words.append(option)
            words.append(word)
        return super().parse_args(ctx, words)


_Quiet = Annotated[bool, Option("--quiet", "-q", help="Print results and errors, no progress.")]
_Verbose = Annotated[bool, Option("--verbose", "-v", help="Log details, and tracebacks of errors.")]
_PANELS = {"base": "Base model", "data": "Data", "train": "Training", "profile": "Training"}
_LAYOUTS = Literal["auto", "separate", "shared", "packed"]
_FILE_FORMATS = Literal["csv", "tsv", "jsonl", "json", "parquet", "arrow", "xlsx"]
RECIPE_FLAGS: dict[str, tuple[Any, str]] = {
    "base.path": (str, BASE_HELP),
    "base.from_scratch": (bool, "Train from random weights of the same shape."),
    "base.trust_remote_code": (bool, _TRUST),
    "data.path": (str, _DATA),
    "data.format": (_FILE_FORMATS, "Kind of the files, where their names do not end in it."),
    "data.delimiter": (str, "Character between columns, or comma, semicolon, tab, bar."),
    "data.encoding": (str, "Encoding of text files, such as cp1252."),
    "data.header": (bool, "Whether CSV and TSV files begin with the names of the columns."),
    "data.limit": (int, "Use at most this number of rows of each split."),
    "data.hold_out": (float, "Evaluate on this fraction of the training rows."),
    "data.on_bad_row": (Literal["stop", "skip"], "Action on an unusable row."),
    "profile": (Literal["modern", "paper"], "Defaults: for today's bases, or GPT-1's."),
    "train.learning_rate": (float, "Peak learning rate (paper: 6.25e-5)."),
    "train.epochs": (float, "Number of epochs (3 by default, and more for few rows)."),
    "train.batch_size": (int, "Batch size in examples (paper: 32)."),
    "train.lm_coefficient": (float, "Weight λ of the LM loss (paper: 0.5)."),
    "train.max_tokens": (int, "Maximum sequence length in tokens (paper: 512)."),
    "train.patience": (int, "Stop after this many evaluations without improvement."),
    "train.seed": (int, "Random seed."),
    "train.precision": (Literal["auto", "fp32", "bf16"], "Numerical precision."),
    "train.layout": (_LAYOUTS, "How sequences are batched; results are equal but for dropout."),
    "train.deterministic": (bool, "Use deterministic GPU kernels."),
    "train.compile": (bool, "Compile the model: slow start, then faster."),
    "train.activation_checkpointing": (bool, "Less memory for activations, a third more time."),
    "train.noise_scale": (bool, "Measure the gradient noise scale, which tells good batch sizes."),
}
"""Recipe values with a flag of their own: key to type and help."""
FILE_FLAGS = {
    key: RECIPE_FLAGS[key]
    for key in ("data.format", "data.delimiter", "data.encoding", "data.header")
}
"""How files are written, for commands that read rows and train nothing."""

_OTHER_NAMES = {
    "train.patience": "--early-stopping",
    "data.format": "--input-format",
    "data.header": "--header/--no-header",
}
_SET_HELP = "Set any other value, such as train.weight_decay=0.1."
_SET = Option("--set", metavar="KEY=VALUE ...", help=_SET_HELP, rich_help_panel=_PANELS["train"])


def name_flag(key: str) -> str:
    """The flag of a recipe value.

    >>> name_flag("train.batch_size"), name_flag("base.path")
    ('--batch-size', '--base')
    """
    if key in _OTHER_NAMES:
        return _OTHER_NAMES[key]
    section, _, name = key.partition(".")
    return f"--{section if name in ('', 'path') else name.replace('_', '-')}"


def with_recipe_flags(
    command: Callable[..., Any],
    flags: Mapping[str, tuple[Any, str]] = RECIPE_FLAGS,
    *,
    with_set: bool = True,
) -> Callable[..., Any]:
    """Adds flags and --set to a typer command, which receives them as its argument `overrides`."""
    names = {key: key.replace(".", "_") for key in flags}

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> Any:
        values = {key: arguments.pop(name) for key, name in names.items()}
        overrides = collect_overrides(values, arguments.pop("settings", None) or [])
        return command(**arguments, overrides=overrides)

    added: dict[str, Any] = {}
    for key, name in names.items():
        kind, text = flags[key]
        flag = Option(name_flag(key), help=text, rich_help_panel=_PANELS[key.partition(".")[0]])
        added[name] = Annotated[kind | None, flag]
    if with_set:
        added["settings"] = Annotated[list[str] | None, _SET]
    signature = inspect.signature(command, eval_str=True)
    parameters = [
        *(p for p in signature.parameters.values() if p.name != "overrides"),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in added.items()
        ),
    ]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper


def with_output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --quiet and --verbose to a typer command."""

    @functools.wraps(command)
    def wrapper(*, quiet: bool, verbose: bool, **arguments: Any) -> Any:
        set_verbosity(quiet=quiet, verbose=verbose)
        return command(**arguments)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", _Quiet), ("verbose", _Verbose))
    ]
    parameters = [*signature.parameters.values(), *added]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper


def collect_overrides(
    flags: Overrides, settings: Sequence[str], option: str = "--set"
) -> dict[str, Any]:
    """Merges flags (None where not given) and KEY=VALUE settings; UsageError if one is wrong."""
    overrides = {key: value for key, value in flags.items() if value is not None}
    for key, value in overrides.items():
        if value == "":
            raise UsageError(f"{key} is empty", cure="Give the option a value, or leave it out.")
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


def parse_seeds(text: str) -> list[int]:
    """Parses seeds, without repetition; UsageError if the text is not a list of at most 1000.

    >>> parse_seeds("0-2,7,7")
    [0, 1, 2, 7]
    """
    from finetune.recipe.schema import SEED_LIMIT

    try:
        bounds = [[int(number) for number in part.split("-", 1)] for part in text.split(",")]
    except ValueError:
        bounds = []
    ranges = (range(ends[0], ends[-1] + 1) for ends in bounds)
    seeds = list(dict.fromkeys(islice(chain.from_iterable(ranges), _MAX_SEEDS + 1)))
    if not seeds or len(seeds) > _MAX_SEEDS or max(seeds) >= SEED_LIMIT:
        cure = f"Write them as 0-4 or 0,3,7: at most {_MAX_SEEDS}, each below {SEED_LIMIT}."
        raise UsageError(f"invalid seeds {text!r}", where="--seeds", cure=cure)
    return seeds


def parse_shard(text: str) -> tuple[int, int]:
    """Parses I/N: the I-th of N parts, from 1.

    >>> parse_shard("2/4")
    (2, 4)
    """
    number, slash, count = text.partition("/")
    if slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    cure = "Write it as 1/4 for the first of four parts, up to 4/4."
    raise UsageError(f"invalid shard {text!r}", where="--shard", cure=cure)


def refuse_options(options: Mapping[str, object], problem: str, cure: str) -> None:
    """Raises UsageError if one of these options, which would have no effect, was given."""
    for option, value in options.items():
        if value not in (None, False, []):
            raise UsageError(f"{option} {problem}", cure=cure)
