"""A hyperparameter search: every trial is a run for each seed, in its own folder.

FOLDER/study.db                    Optuna's study: values, evaluations and states of all trials
FOLDER/search.yaml                 the recipe, the ranges and the seeds, which may not change
FOLDER/trials/0001/seed-42/        the run of a trial and a seed, without its model
FOLDER/trials.csv                  a line for each trial
FOLDER/best.yaml                   the recipe with the best values so far
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from finetune.distributed.collectives import agree_on_request, broadcast
from finetune.distributed.setup import choose_precision, create_accelerator
from finetune.distributed.signals import SignalListener
from finetune.optional_packages import require_package
from finetune.recipe.loading import resolve_paths
from finetune.recipe.schema import Recipe
from finetune.training.events import Event, Interrupted
from finetune.tuning.optuna_study import (
    DATABASE,
    TRIALS,
    OptunaStudy,
    TrialResult,
    close_storage,
    load_study,
    open_storage,
    read_trial,
    sort_trials,
)
from finetune.tuning.trial import Search, Trial
from task_formats import Task, UsageError


class TrialStarted(NamedTuple):
    """A trial starts to run, or goes on."""

    number: int
    trials: int
    values: dict[str, Any]


class TrialFinished(NamedTuple):
    """A trial is finished, pruned or failed."""

    trial: TrialResult
    best: TrialResult | None
    """The best trial so far, perhaps this one."""


def check_optuna() -> None:
    """Raises UsageError if Optuna is not installed."""
    require_package("optuna", "tune", "a search")


def tune(recipe: Recipe, folder: Path | str, search: Search, **options: Any) -> list[TrialResult]:
    """Runs a search and returns its trials, the best first; takes the options of `events`."""
    for _ in events(recipe, folder, search, **options):
        pass
    return read_trials(recipe, folder)


def events(
    recipe: Recipe,
    folder: Path | str,
    search: Search,
    *,
    trials: int = 20,
    task: Task | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> Iterator[TrialStarted | TrialFinished | Event]:
    """Searches; yields the start and end of each trial, and the events of its runs.

    The first trial has the recipe's own values, as far as they are in the ranges. Optuna's TPE
    sampler draws the others, each with a seed of its own, so that a search that was stopped and
    goes on makes the same trials as one that was not.

    Args:
        recipe: The task, the base, the data and all settings without a range.
        folder: The folder of the search. A search in it goes on: finished trials are read, and an
            interrupted one resumes from its latest checkpoint.
        search: Ranges and seeds.
        trials: Number of trials, together with those in the folder.
        task: Replaces the recipe's task, for tasks defined in Python.
        overwrite: Delete the search in the folder first.
        device: cpu, cuda, cuda:1, ...; None takes the best available.

    Raises:
        UsageError: The folder holds another search, Optuna is missing, the recipe names no
            evaluation split, or a trial raises it. (A trial whose loss is not finite, or that runs
            out of memory, has failed, and the search goes on.)
        Interrupted: A signal requested a stop.
    """
    check_optuna()
    recipe, folder = resolve_paths(recipe, Path.cwd()), Path(folder)
    if recipe.data.evaluation_split is None:
        cure = "Name it with --set data.evaluate=FILE, or add --hold-out 0.1."
        raise UsageError("a search needs evaluation data", where="data.evaluate", cure=cure)
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    # On other processes than the first there is no study: they do what the first one says.
    study = (
        OptunaStudy.open(recipe, folder, search, overwrite) if accelerator.is_main_process else None
    )
    try:
        with SignalListener() as signals:
            while True:
                proposal = broadcast(study and study.propose(trials), accelerator)
                if proposal is None:
                    return
                number, values = proposal
                yield TrialStarted(number, trials, values)
                report = partial(study.report, number) if study else None
                run = Trial(recipe, folder / TRIALS / f"{number:04d}", search, values, report)
                yield from run.events(accelerator, task, device)
                if study:
                    yield TrialFinished(*study.finish(number, run))
                accelerator.wait_for_everyone()
                # A signal that came too late for the run stops the search.
                request, code = agree_on_request(signals.take(), signals.exit_code, accelerator)
                if request == "stop":
                    raise Interrupted(folder, None, code)
    finally:
        if study:
            study.close()


def read_trials(recipe: Recipe, folder: Path | str) -> list[TrialResult]:
    """Returns the trials of a search: the best first, then pruned and failed ones."""
    check_optuna()
    if not (Path(folder) / DATABASE).exists():
        what = "no search in this directory"
        raise UsageError(what, where=str(folder), cure="Check the path.")
    storage = open_storage(Path(folder))
    try:
        study = load_study(storage)
        return sort_trials(
            [read_trial(recipe, trial) for trial in study.get_trials(deepcopy=False)]
        )
    finally:
        close_storage(storage)
