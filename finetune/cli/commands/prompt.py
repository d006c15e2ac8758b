"""`gptft prompt`."""

from collections.abc import Sequence
from functools import partial
from itertools import chain, groupby
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from typer import Context, Option

from finetune.cli.console import console, get_rank, make_table, silence_libraries
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    FILE_FLAGS,
    RECIPE_FLAGS,
    NumProcesses,
    Overrides,
    TaskName,
    parse_seeds,
    refuse_options,
    with_recipe_flags,
)

if TYPE_CHECKING:
    from finetune.prompting import PromptResult

_FLAGS = ("base.path", "base.trust_remote_code", "data.path", *FILE_FLAGS, "train.precision")


@partial(with_recipe_flags, flags={key: RECIPE_FLAGS[key] for key in _FLAGS})
def prompt(
    context: Context,
    overrides: Overrides,
    task: TaskName,
    shots: list[int] = Option([0], min=0, metavar="K ...", help="Demonstrations in the prompt."),
    seeds: str = Option("0", metavar="N-M", help="Seeds that draw demonstrations: 0-4 or 0,7."),
    shared: bool = Option(False, "--shared", help="The same demonstrations for all rows."),
    calibrated: bool = Option(False, "--calibrated", help="Calibrate with a content-free prompt."),
    normalization: Literal["none", "token", "byte", "prior"] | None = Option(
        None, help="Normalization of log-likelihoods.", show_default="that of the prompt"
    ),
    prompt: str | None = Option(
        None, metavar="NAME", help="Another prompt of the recipe, such as gpt1 of cola."
    ),
    limit: int | None = Option(None, min=1, help="Evaluate only the first rows."),
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
    from finetune.cli.output_rows import choose_format
    from finetune.cli.progress_display import show_progress
    from finetune.cli.task_sources import find_task
    from finetune.prompting import evaluate_prompts

    draws = parse_seeds(seeds)
    if not any(shots):
        seeds_given = seeds if seeds != "0" else None
        problem = "has no effect without demonstrations"
        refuse_options({"--seeds": seeds_given, "--shared": shared}, problem, "Add --shots 4.")
    unused = {key: overrides[key] for key in overrides if key.startswith("train.")}
    for key in ("train.precision", "train.layout", "train.tokens_per_forward"):
        unused.pop(key, None)
    refuse_options(unused, "has no effect: nothing is trained", "Leave it out.")
    if output is not None:
        choose_format(output)
    source = find_task(task, overrides)
    recipe = source.recipe
    if prompt is not None:
        recipe = recipe.model_copy(update={"task": recipe.task.with_prompt(prompt)})
    launch_processes(context, num_processes)
    shots = list(dict.fromkeys(shots))
    options: dict[str, Any] = {"limit": limit, "shared": shared, "calibrated": calibrated}
    options["normalization"] = normalization
    with show_progress("loading"):
        results = list(evaluate_prompts(recipe, shots, draws, task=source.task, **options))
    if output is not None and get_rank() == 0:
        _write_answers(results, output)
    console().print(make_shots_table(results))


def make_shots_table(results: "Sequence[PromptResult]") -> Table:
    """A row for each number of demonstrations: every metric with its interval."""
    rows = []
    for shots, group in groupby(results, key=lambda result: result.options.shots):
        first, *others = group
        cells = [str(shots), f"{mean(result.mean_shots for result in (first, *others)):.4g}"]
        for metric, interval in first.intervals.items():
            values = [result.scores[metric] for result in (first, *others)]
            low, high = (min(values), max(values)) if others else interval
            cells += [f"{median(values):.4f}", f"{low:.4f} to {high:.4f}"]
        rows.append([*cells, f"{len(others) + 1} seeds" if others else "rows"])
    columns = chain.from_iterable((metric, "interval") for metric in results[0].intervals)
    table = make_table(["shots", "in context", *columns, "over"], rows)
    precision = results[0].precision
    hint = " (--precision fp32 reproduces the numbers of transformers)"
    caption = [f"precision: {precision}{'' if precision == 'fp32' else hint}"]
    caption.append("interval over rows: 95 % bootstrap confidence interval")
    if len(results) > len(rows):
        caption.append("interval over seeds: minimum to maximum; the score is the median")
    table.caption, table.caption_justify = "\n".join(caption), "left"
    return table


def _write_answers(results: "Sequence[PromptResult]", output: str) -> None:
    from finetune.data import write_rows

    score_kind = results[0].score_kind
    # A score is the label itself.
    added = [] if score_kind == "score" else [score_kind]
    with write_rows(output, ["shots", "seed", "id", "label", *added], format=None) as writer:
        for result in results:
            options = {"shots": result.options.shots, "seed": result.options.seed}
            for answer in result.predictions:
                scores = list(answer.scores) if score_kind == "probabilities" else answer.scores[0]
                row = {**options, "id": answer.id, "label": answer.label}
                writer.write(row | dict.fromkeys(added, scores))
