"""One trial of a search: a run for each seed, with the same values."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

from finetune.checkpointing.run_folder import CHECKPOINTS, LOG, MODEL, RECIPE, RESULT, read_result
from finetune.distributed.collectives import broadcast
from finetune.distributed.memory import is_out_of_memory
from finetune.evaluation.metrics import selection_value
from finetune.recipe.loading import override_recipe
from finetune.recipe.schema import Recipe
from finetune.storage import files
from finetune.training.events import Diverged, Evaluated, Event, Finished, Started
from finetune.training.finetuning import events as train_events
from finetune.tuning.ranges import Space
from task_formats import Task

State = Literal["running", "finished", "pruned", "failed"]


class Search(NamedTuple):
    """What is searched, and how."""

    space: Space
    seeds: tuple[int, ...]
    """Seeds of every trial. Its score is the mean over them."""
    prune: bool = True
    """Stop trials that are worse than the median of the earlier ones after as many evaluations."""


class Trial:
    """The runs of one trial on this process, one for each seed.

    Attributes:
        results: The content of result.json for each seed that is finished.
        state: "running" until the last seed is finished.
        stopped_at: Scores of a pruned trial.
        reason: Why it failed.
        seconds: Spent on training and evaluation by this process.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        search: Search,
        values: Mapping[str, Any],
        report: Callable[[int, float], bool] | None,
    ) -> None:
        """Prepares a trial.

        Args:
            recipe: The recipe of the search.
            folder: Gets a folder for each seed.
            search: The seeds, and whether to prune.
            values: The values of this trial.
            report: Takes the number of an evaluation and its value; returns whether to stop. None
                on all processes but the first.
        """
        # Further splits are not scored: nothing is chosen by them.
        data = recipe.data.model_copy(update={"extra": {}})
        self.recipe = override_recipe(recipe, values).model_copy(update={"data": data})
        self.folder, self.search = folder, search
        self._report = report
        self.results: list[dict[str, Any]] = []
        self.state: State = "running"
        self.stopped_at: dict[str, float] = {}
        self.reason = ""
        self.seconds = 0.0
        self._updates = 0

    def events(self, accelerator: Any, task: Task | None, device: str | None) -> Iterator[Event]:
        """Trains every seed; passes the events of the runs on."""
        for seed in self.search.seeds:
            folder = self.folder / f"seed-{seed}"
            if not (folder / RESULT).exists():
                try:
                    yield from self._train(seed, folder, accelerator, task, device)
                except Diverged as error:
                    self.state, self.reason = "failed", error.what
                except (MemoryError, RuntimeError) as error:
                    # Others would wait for a process that has failed alone.
                    if accelerator.num_processes > 1 or not is_out_of_memory(error):
                        raise
                    self.state, self.reason = "failed", "out of memory"
                gc.collect()  # The model of a run is part of cycles.
            if accelerator.is_main_process:
                files.remove(folder / CHECKPOINTS)
                files.remove(folder / MODEL)
            if self.state != "running":
                return
            accelerator.wait_for_everyone()
            self.results.append(read_result(folder))
        self.state = "finished"

    def _train(
        self, seed: int, folder: Path, accelerator: Any, task: Task | None, device: str | None
    ) -> Iterator[Event]:
        recipe = self.recipe.with_train(seed=seed)
        resume = any((folder / name).exists() for name in (RECIPE, LOG))
        started = time.perf_counter()
        run = train_events(recipe, folder, resume=resume, task=task, device=device)
        try:
            with closing(run):  # type: ignore[type-var]
                for event in run:
                    if isinstance(event, Started):
                        self._updates = event.updates
                    if not isinstance(event, Finished):
                        yield event
                    if isinstance(event, Evaluated) and self._is_poor(seed, event, accelerator):
                        self.state, self.stopped_at = "pruned", event.scores
                        return
        finally:
            self.seconds += time.perf_counter() - started

    def _is_poor(self, seed: int, event: Evaluated, accelerator: Any) -> bool:
        """Whether to stop: only the evaluations of the first seed are compared."""
        if not self.search.prune or seed != self.search.seeds[0]:
            return False
        is_last = event.update >= self._updates and len(self.search.seeds) == 1
        poor = False
        if self._report is not None:
            step = round(event.epoch * self.recipe.train.evaluations)
            value = compute_value(self.recipe, event.scores)
            poor = self._report(step, value) and not is_last
        return bool(broadcast(poor, accelerator))


def compute_value(recipe: Recipe, scores: Mapping[str, float]) -> float:
    """Returns what a search maximizes: the metric that selects checkpoints, or NaN."""
    known = {name: math.nan if score is None else score for name, score in scores.items()}
    return selection_value(known, recipe.task.metrics, recipe.task.select)
