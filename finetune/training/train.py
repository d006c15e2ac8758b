"""Fine-tuning from a recipe to a finished run: a generator of events, and its consumer."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from finetune.distributed.setup import choose_precision, create_accelerator, deterministic_kernels
from finetune.recipe.loading import dump_recipe, resolve_paths
from finetune.recipe.schema import Recipe
from finetune.training.events import Event, Result
from finetune.training.finetuning import prepare_finetuning
from finetune.training.runner import finish_run, run
from task_formats import Example, Task


def train(
    recipe: Recipe,
    folder: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    task: Task | None = None,
    examples: Sequence[Example] | None = None,
    device: str | None = None,
) -> Result:
    """Trains to the end and gives the result; `events` lets you watch.

    `task` replaces the one the recipe describes, for rows that need code; `examples` replace the
    rows of `data.train`; `device` is cpu, cuda or the like, and otherwise the best there is.
    Raises UsageError for anything wrong with recipe, data, base or folder.
    """
    return finish_run(
        events(
            recipe,
            folder,
            resume=resume,
            overwrite=overwrite,
            task=task,
            examples=examples,
            device=device,
        )
    )


def events(
    recipe: Recipe,
    folder: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    task: Task | None = None,
    examples: Sequence[Example] | None = None,
    device: str | None = None,
) -> Iterator[Event]:
    """Trains, evaluates and saves; yields every update and evaluation as it is done.

    Closing the generator ends the run with its folder in order. Interrupted is raised when a
    signal asked for the end, after a whole state was saved.
    """
    recipe = resolve_paths(recipe, Path.cwd())
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    task = task or recipe.task.build()
    prepare = partial(prepare_finetuning, recipe, task, examples=examples)
    told = dump_recipe(recipe)
    options = {"resume": resume, "overwrite": overwrite}
    with deterministic_kernels(recipe.train.deterministic):
        yield from run(prepare, Path(folder), accelerator, told, **options)
