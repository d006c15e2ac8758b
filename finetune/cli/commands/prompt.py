"""`gptft prompt`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text
from typer import Context, Option

from finetune.cli.console import console, get_rank, silence_libraries
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    Base,
    Data,
    NumProcesses,
    Precision,
    Settings,
    TaskName,
    Trust,
    collect_overrides,
)
from task_formats import UsageError

if TYPE_CHECKING:
    from finetune.prompting import PromptResult

_MAX_SEEDS = 1000
_TRAIN_VALUES = ("train.precision", "train.layout", "train.tokens_per_forward")
"""Training values that prompting uses, too."""


def prompt(
    context: Context,
    task: TaskName,
    base: Base = None,
    shots: list[int] | None = Option(
        None, min=0, metavar="K ...", help="Demonstrations in the prompt.", show_default="0"
    ),
    seeds: str | None = Option(
        None, metavar="N-M", help="Seeds that draw demonstrations: 0-4 or 0,7.", show_default="0"
    ),
    shared: bool = Option(False, "--shared", help="The same demonstrations for all rows."),
    calibrated: bool = Option(False, "--calibrated", help="Calibrate with a content-free prompt."),
    normalization: Literal["none", "token", "byte", "prior"] | None = Option(
        None, help="Normalization of log-likelihoods.", show_default="that of the prompt"
    ),
    prompt: str | None = Option(
        None, metavar="NAME", help="Another prompt of the recipe, such as gpt1 of cola."
    ),
    data: Data = None,
    limit: int | None = Option(None, min=1, help="Evaluate only the first rows."),
    precision: Precision = None,
    trust_remote_code: Trust = False,
    settings: Settings = None,
    output: str | None = Option(
        None, "--output", "-o", metavar="OUT", help="Write each answer to this file."
    ),
    num_processes: NumProcesses = 1,
) -> None:
    """Zero- and few-shot evaluation.

    The language model scores the answers to a prompt; nothing is trained.

    Example: gptft prompt --task rte --base gpt2 --shots 0 4 32
    """
    silence_libraries()
    from finetune.cli.output_columns import choose_format
    from finetune.cli.task_sources import find_task
    from finetune.prompting import evaluate_prompts

    counts, draws = _parse_shots(shots, seeds, shared)
    if output is not None:
        choose_format(output)
    flags = {
        "base.path": base,
        "base.trust_remote_code": trust_remote_code or None,
        "data.path": data,
        "train.precision": precision,
    }
    overrides = collect_overrides(flags, settings or [])
    _check_overrides(overrides)
    source = find_task(task, overrides)
    recipe = source.recipe
    if prompt is not None:
        recipe = recipe.model_copy(update={"task": recipe.task.with_prompt(prompt)})
    launch_processes(context, num_processes)
    evaluations = evaluate_prompts(
        recipe,
        counts,
        draws,
        task=source.task,
        limit=limit,
        shared=shared,
        calibrated=calibrated,
        normalization=normalization,
    )
    results = _collect(evaluations)
    if output is not None and get_rank() == 0:
        _write_answers(results, output)
    console().print(make_shots_table(results))


def _parse_shots(
    shots: Sequence[int] | None, seeds: str | None, shared: bool
) -> tuple[list[int], list[int]]:
    """The numbers of demonstrations and the seeds; UsageError for an option without effect."""
    counts, draws = list(dict.fromkeys(shots or [0])), parse_seeds(seeds or "0")
    unused = "--seeds" if seeds is not None else "--shared" if shared else None
    if unused and not any(counts):
        what = f"{unused} has no effect without demonstrations"
        raise UsageError(what, cure=f"Add --shots 4, or leave {unused} out.")
    return counts, draws


def _check_overrides(overrides: Mapping[str, Any]) -> None:
    """Raises UsageError for a value that only affects training."""
    for key in overrides:
        if key.startswith("train.") and key not in _TRAIN_VALUES:
            what = f"{key} has no effect: prompting does not train"
            cure = f"Leave it out. Values in use: {', '.join(_TRAIN_VALUES)}."
            raise UsageError(what, where="--set", cure=cure)


def _collect(evaluations: "Iterable[PromptResult]") -> "list[PromptResult]":
    """All results, with a status line."""
    results: list[PromptResult] = []
    with console(stderr=get_rank() == 0).status(Text(" loading")) as status:
        for result in evaluations:
            results.append(result)
            status.update(Text(f" evaluated with {result.options.shots} shots"))
    return results


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
            raise ValueError("an empty range or a seed out of bounds")
        if sum(ends[-1] - ends[0] + 1 for ends in bounds) > _MAX_SEEDS:
            raise ValueError("too many seeds")
    except ValueError:
        cure = f"Write them as 0-4 or 0,3,7: at most {_MAX_SEEDS}, each below {SEED_LIMIT}."
        raise UsageError(f"invalid seeds {text!r}", where="--seeds", cure=cure) from None
    ranges = (range(ends[0], ends[-1] + 1) for ends in bounds)
    return list(dict.fromkeys(chain.from_iterable(ranges)))


def make_shots_table(results: "Sequence[PromptResult]") -> Table:
    """A row for each number of demonstrations: every metric with its interval."""
    groups: dict[int, list[PromptResult]] = {}
    for result in results:
        groups.setdefault(result.options.shots, []).append(result)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", caption_justify="left")
    table.add_column("shots", justify="right", style="cyan")
    table.add_column("in context", justify="right")
    metrics = list(results[0].scores)
    for metric in metrics:
        table.add_column(Text(metric), justify="right")
        table.add_column("interval")
    table.add_column("over")
    for shots, group in groups.items():
        in_context = sum(result.mean_shots for result in group) / len(group)
        cells = chain.from_iterable(_make_cells(group, metric) for metric in metrics)
        over = f"{len(group)} seeds" if len(group) > 1 else "rows"
        table.add_row(str(shots), f"{in_context:.4g}", *cells, over)
    table.caption = _make_caption(results[0].precision, {len(group) for group in groups.values()})
    return table


def _make_caption(precision: str, group_sizes: set[int]) -> str:
    lines = [f"precision: {precision}"]
    if precision != "fp32":
        lines[0] += " (--precision fp32 reproduces the numbers of transformers)"
    if 1 in group_sizes:
        lines.append("interval over rows: 95 % bootstrap confidence interval")
    if group_sizes != {1}:
        lines.append("interval over seeds: minimum to maximum, with the median as score")
    return "\n".join(lines)


def _make_cells(group: "Sequence[PromptResult]", metric: str) -> tuple[str, str]:
    values = [result.scores[metric] for result in group]
    low, high = (min(values), max(values)) if len(group) > 1 else group[0].intervals[metric]
    return f"{median(values):.4f}", f"{low:.4f} to {high:.4f}"


def _write_answers(results: "Sequence[PromptResult]", output: str) -> None:
    from finetune.data import write_rows

    score_kind = results[0].score_kind
    columns = ["shots", "seed", "id", "label"]
    if score_kind != "score":  # A score is the label itself.
        columns.append(score_kind)
    with write_rows(output, columns, format=None) as writer:
        for result in results:
            for answer in result.predictions:
                row = [result.options.shots, result.options.seed, answer.id, answer.label]
                if score_kind == "probabilities":
                    row.append(list(answer.scores))
                elif score_kind == "log_probability":
                    row.append(answer.scores[0])
                writer.write(dict(zip(columns, row, strict=True)))
