"""The verb ask, and its table."""

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from finetune.cli.console import console, process, quiet_libraries
from finetune.cli.launcher import is_child, run_processes
from finetune.cli.options import Precision, Processes, Settings, Trust
from finetune.cli.recipe_options import Changes, collect
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.prompting import PromptResult

_MOST_SEEDS = 1000

Base = Annotated[
    str | None,
    typer.Option("--base", help="A hub id, a local folder, a run's folder, or tiny."),
]
Shots = Annotated[
    list[int] | None,
    typer.Option(min=0, metavar="K ...", help="Solved examples before a question."),
]
Seeds = Annotated[
    str | None,
    typer.Option(metavar="N-M", help="Draws of the solved examples, as 0-4 or 0,7; else 0."),
]
Shared = Annotated[
    bool, typer.Option("--shared", help="The same solved examples for all questions.")
]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Weigh answers against an empty question.")
]
Normalization = Annotated[
    Literal["none", "token", "byte", "prior"] | None,
    typer.Option(help="Of log-likelihoods; else as the task's prompt says."),
]
PromptName = Annotated[
    str | None,
    typer.Option("--prompt", metavar="NAME", help="Another of its prompts, as gpt1 for cola."),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Ask only the first rows; solved examples come from all."),
]
Data = Annotated[
    str | None, typer.Option(help="A folder with a local copy of the data, or a hub id.")
]
Output = Annotated[
    str | None, typer.Option("--output", "-o", metavar="OUT", help="Every answer, as rows.")
]


def ask(
    context: typer.Context,
    task: Annotated[
        str, typer.Option("--task", "-t", help="A shipped recipe, a YAML file, or module:name.")
    ],
    base: Base = None,
    shots: Shots = None,
    seeds: Seeds = None,
    shared: Shared = False,
    calibrated: Calibrated = False,
    normalization: Normalization = None,
    prompt: PromptName = None,
    data: Data = None,
    limit: Limit = None,
    precision: Precision = None,
    trust_remote_code: Trust = False,
    settings: Settings = None,
    output: Output = None,
    num_processes: Processes = 1,
) -> None:
    """Ask a task in words, without training: zero-, one- and few-shot.

    Example: gptft ask --task rte --base gpt2 --shots 0 4 32
    """
    quiet_libraries()
    from finetune import prompting
    from finetune.cli.output_columns import choose_format
    from finetune.cli.task_sources import find

    counts, draws = _read_shots(shots, seeds, shared)
    if output is not None:
        choose_format(output)
    flags = {
        "base.path": base,
        "base.trust_remote_code": trust_remote_code or None,
        "data.path": data,
        "train.precision": precision,
    }
    source = find(task, _untrained(collect(flags, settings or [])))
    recipe = source.recipe
    if prompt is not None:
        recipe = recipe.model_copy(update={"task": recipe.task.with_prompt(prompt)})
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    asking = prompting.ask(
        recipe,
        counts,
        draws,
        task=source.task,
        limit=limit,
        shared=shared,
        calibrated=calibrated,
        normalization=normalization,
    )
    found = _follow(asking)
    if output is not None and process() == 0:
        _write_answers(found, output)
    console().print(shots_table(found))


def _read_shots(
    shots: Sequence[int] | None, seeds: str | None, shared: bool
) -> tuple[list[int], list[int]]:
    """Numbers of shots and of seeds. UsageError for an option that would draw from nothing."""
    counts, draws = list(dict.fromkeys(shots or [0])), parse_numbers(seeds or "0")
    idle = "--seeds" if seeds is not None else "--shared" if shared else None
    if idle and not any(counts):
        what = f"without solved examples {idle} has no effect"
        raise UsageError(what, cure=f"Say --shots 4 as well, or leave {idle} out.")
    return counts, draws


def _untrained(changes: Changes) -> Changes:
    """The changes; UsageError for one that is about training."""
    for key in changes:
        if key.startswith("train.") and key not in _READ:
            what = f"{key} has no effect: nothing is trained"
            raise UsageError(
                what, where="--set", cure=f"Leave it out. Read are {', '.join(_READ)}."
            )
    return changes


_READ = ("train.precision", "train.layout", "train.tokens_per_forward")
"""What asking needs to know of all that is said of training."""


def _follow(asking: "Iterable[PromptResult]") -> "list[PromptResult]":
    """All that is found, with a word on the screen as it comes."""
    found: list[PromptResult] = []
    with console(stderr=process() == 0).status(Text(" loading")) as status:
        for asked in asking:
            found.append(asked)
            status.update(Text(f" asked with {asked.manner.shots} shots"))
    return found


def parse_numbers(text: str) -> list[int]:
    """Whole numbers from `0-4` or `0,3,7`, each once.

    >>> parse_numbers("0-2,7,7")
    [0, 1, 2, 7]
    """
    from finetune.recipe.schema import SEED_LIMIT

    try:
        bounds = [tuple(map(int, part.split("-", 1))) for part in text.split(",")]
        if any(not ends[0] <= ends[-1] < SEED_LIMIT for ends in bounds):
            raise ValueError("a range that is empty, or a seed that is too large")
        if sum(ends[-1] - ends[0] + 1 for ends in bounds) > _MOST_SEEDS:
            raise ValueError("a slip of the keyboard")
    except ValueError:
        cure = f"Write them as 0-4 or 0,3,7: up to {_MOST_SEEDS} of them, each below {SEED_LIMIT}."
        raise UsageError(f"{text!r} are no seeds", where="--seeds", cure=cure) from None
    ranges = (range(ends[0], ends[-1] + 1) for ends in bounds)
    return list(dict.fromkeys(chain.from_iterable(ranges)))


def shots_table(found: "Sequence[PromptResult]") -> Table:
    """A row per number of shots: every metric with its interval, and what the interval is of."""
    precision = found[0].precision
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", caption_justify="left")
    table.caption = f"asked in {precision}{_CAUTION if precision != 'fp32' else ''}"
    table.add_column("shots", justify="right", style="cyan")
    table.add_column("shown", justify="right")
    metrics = list(found[0].scores)
    for metric in metrics:
        table.add_column(Text(metric), justify="right")
        table.add_column("interval")
    table.add_column("of")
    for count, group in _by_shots(found).items():
        shown = sum(asked.shown for asked in group) / len(group)
        cells = [cell for metric in metrics for cell in _cells(group, metric)]
        over = f"{len(group)} seeds" if len(group) > 1 else "95 % of rows"
        table.add_row(str(count), f"{shown:.4g}", *cells, over)
    return table


_CAUTION = "; --precision fp32 gives transformers' own numbers"


def _cells(group: "Sequence[PromptResult]", metric: str) -> tuple[str, str]:
    values = [asked.scores[metric] for asked in group]
    low, high = (min(values), max(values)) if len(group) > 1 else group[0].intervals[metric]
    return f"{median(values):.4f}", f"{low:.4f} to {high:.4f}"


def _by_shots(found: "Iterable[PromptResult]") -> "dict[int, list[PromptResult]]":
    groups: dict[int, list[PromptResult]] = {}
    for asked in found:
        groups.setdefault(asked.manner.shots, []).append(asked)
    return groups


def _write_answers(found: "Sequence[PromptResult]", output: str) -> None:
    from finetune.data import write_rows

    reads = found[0].reads
    columns = ["shots", "seed", "id", "label"]
    if reads != "score":  # It is the label itself.
        columns.append(reads)
    with write_rows(output, columns, format=None) as sink:
        for asked in found:
            for answer in asked.predictions:
                row = [asked.manner.shots, asked.manner.seed, answer.id, answer.label]
                if reads == "probabilities":
                    row.append(list(answer.scores))
                elif reads == "log_probability":
                    row.append(answer.scores[0])
                sink.write(dict(zip(columns, row, strict=True)))
