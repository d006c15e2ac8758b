"""Verbs that train: train and resume."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.console import console, quiet_libraries
from finetune.cli.endings import end_stopped
from finetune.cli.launcher import is_child, run_processes
from finetune.cli.options import Processes, Trust
from finetune.cli.recipe_options import Changes, with_overrides

if TYPE_CHECKING:
    from finetune.recipe.schema import Recipe
    from task_formats import Task


@with_overrides
def train(
    context: typer.Context,
    changes: Changes,
    task: Annotated[
        str, typer.Option("--task", "-t", help="A shipped recipe, a YAML file, or module:name.")
    ],
    folder: Annotated[
        Path | None,
        typer.Option("--folder", "-o", metavar="FOLDER", help="The run; else runs/TASK."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run there.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete the run there and start anew.")
    ] = False,
    num_processes: Processes = 1,
) -> None:
    """Fine-tune a pretrained decoder on a task, and score it.

    Example: gptft train --task rte --base gpt2 --data glue --epochs 3

    What is said here outdoes the recipe, and the recipe outdoes the paper's values.
    """
    from finetune.cli.task_sources import find

    source = find(task, changes)
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    target = folder or Path("runs", source.name)
    _train(source.recipe, target, source.task, resume=resume, overwrite=overwrite)


def resume(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="Its module:name, if Python made it."),
    ] = None,
    trust_remote_code: Trust = False,
    num_processes: Processes = 1,
) -> None:
    """Go on with a run that was stopped, from its last whole state.

    Example: gptft resume runs/rte
    """
    from finetune.checkpointing.run_folder import RECIPE, read_recipe
    from finetune.cli.commands.pretrain import follow_pretraining
    from finetune.cli.task_sources import find
    from finetune.pretraining.plan_loading import is_plan, parse_run_plan
    from finetune.training.recorder import load_run_recipe

    told = read_recipe(run)  # Says what kind of folder this is, where it is no run's.
    if num_processes > 1 and not is_child():
        raise typer.Exit(run_processes(context.find_root().obj, num_processes))
    if is_plan(told):
        plan = parse_run_plan(told, str(run / RECIPE), trust_remote_code)
        follow_pretraining(plan, run, resume=True)
        return
    recipe = load_run_recipe(run, trust_remote_code)
    _train(recipe, run, find(task, {}).task if task else None, resume=True)


def _train(
    recipe: "Recipe",
    folder: Path,
    task: "Task | None",
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Trains before the user's eyes; stopped by a signal, ends with that signal's exit code."""
    quiet_libraries()
    from finetune.cli.run_display import conclude, follow
    from finetune.training.events import Interrupted
    from finetune.training.train import events

    about = f"Training {folder.name} from {recipe.base.path}"
    try:
        happening = events(recipe, folder, resume=resume, overwrite=overwrite, task=task)
        result = follow(happening, about, console())
    except Interrupted as stop:
        end_stopped(str(stop), stop.exit_code)
    if result is not None:
        conclude(result, console())
