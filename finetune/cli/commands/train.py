"""`gptft train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Context

from finetune.cli.console import silence_libraries
from finetune.cli.launcher import launch_processes
from finetune.cli.options import (
    Folder,
    NumProcesses,
    Overrides,
    Overwrite,
    Resume,
    TaskName,
    Track,
    with_recipe_flags,
)

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe
    from task_formats import Task


@with_recipe_flags
def train(
    context: Context,
    overrides: Overrides,
    task: TaskName,
    folder: Folder = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = 1,
    track: Track = None,
) -> None:
    """Fine-tune a pretrained decoder on a task and evaluate it.

    Example: gptft train --task rte --base gpt2 --data glue --epochs 3

    Options override the recipe; the recipe overrides the defaults.
    """
    from finetune.cli.task_sources import find_task

    source = find_task(task, {**overrides, **({"train.trackers": track} if track else {})})
    launch_processes(context, num_processes)
    target = folder or Path("runs", source.name)
    train_with_display(source.recipe, target, source.task, resume=resume, overwrite=overwrite)


def train_with_display(recipe: "Recipe", folder: Path, task: "Task | None", **options: Any) -> None:
    """Trains with a live progress display, then prints the scores and the next commands."""
    silence_libraries()
    from finetune.cli.run_display import display_run, print_result
    from finetune.training.finetuning import events

    run = events(recipe, folder, task=task, **options)
    result = display_run(run, _title(recipe, folder))
    if result is not None:
        print_result(result, recipe.task.resolve(task).labels)


def _title(recipe: "Recipe", folder: Path) -> str:
    """What is trained, and with which settings."""
    train, rate = recipe.train, f"{recipe.train.learning_rate:.3g}"
    return (
        f"Training {folder.name} from {recipe.base.path}\n"
        f"  profile {recipe.profile}: learning rate {rate}, {train.schedule} schedule, "
        f"λ = {train.lm_coefficient:g}"
    )
