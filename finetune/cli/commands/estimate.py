"""`gptft estimate`."""

from typing import TYPE_CHECKING

from typer import Option

from finetune.cli.console import (
    console,
    format_bytes,
    format_count,
    make_table,
    print_line,
    show_status,
    silence_libraries,
)
from finetune.cli.options import Device, Overrides, TaskOrRun, with_recipe_flags

if TYPE_CHECKING:
    from finetune.training.estimate import Estimate


@with_recipe_flags
def estimate(
    task: TaskOrRun,
    overrides: Overrides,
    seconds: float = Option(10.0, min=0, max=3600, help="Length of the trial."),
    device: Device = None,
) -> None:
    """Estimate memory and time of a training run.

    Makes updates for ten seconds; writes nothing.

    Example: gptft estimate rte --base gpt2
    """
    silence_libraries()
    from finetune.cli.task_sources import find_task_or_run
    from finetune.training.estimate import estimate

    source = find_task_or_run(task, overrides)
    with show_status(f" preparing {source.name}, then training for a trial"):
        found = estimate(source.recipe, task=source.task, device=device, seconds=seconds)
    print_line((f"{source.name} from {source.recipe.base.path}", "bold"))
    console().print(make_table(["part", "estimate"], describe(found)))


def describe(found: "Estimate") -> list[tuple[str, str]]:
    """The rows of the table."""
    from finetune.cli.progress_display import format_time

    start, memory, tokens, trial = found.started, found.memory, found.tokens, found.trial
    parts = [value for value in memory if value is not None]
    activations = "not measured on this system"
    if memory.activations is not None:
        activations = f"{format_bytes(memory.activations)} at most in the trial"
    trained = "all" if start.parameters == found.parameters else f"{start.parameters:,}"
    share = tokens.truncated_examples / start.examples
    per_epoch, total = found.seconds_per_epoch, found.seconds_per_epoch * found.epochs
    return [
        ("parameters", f"{found.parameters:,}, {trained} trained"),
        ("runs on", f"{start.device}, {start.precision}, {start.layout} layout"),
        ("memory: weights", format_bytes(memory.weights)),
        ("memory: gradients", format_bytes(memory.gradients)),
        ("memory: optimizer", format_bytes(memory.optimizer)),
        ("memory: activations", activations),
        ("memory: together", format_bytes(sum(parts))),
        ("examples", f"{start.examples:,}, {tokens.truncated_examples:,} truncated ({share:.1%})"),
        (
            "tokens",
            f"{tokens.per_epoch:,} per epoch; mean {tokens.mean:.1f}, longest {tokens.longest}",
        ),
        (
            "updates",
            f"{start.updates:,} ({found.epochs:g} {'epoch' if found.epochs == 1 else 'epochs'} of "
            f"{found.updates_per_epoch:,})",
        ),
        (
            "speed",
            f"{trial.tokens_per_second:,.0f} tokens/s in {format_count(trial.updates, 'update')} "
            f"of {trial.seconds:.1f} s",
        ),
        (
            "time",
            f"{format_time(per_epoch)} per epoch, {format_time(total)} in all, without evaluation",
        ),
    ]
