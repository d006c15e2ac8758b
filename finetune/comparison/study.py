"""A study: every cell in a folder of its own, done once, and read the next time.

FOLDER/CELL/recipe.yaml, result.json   and whatever else a run keeps
FOLDER/table.json, table.md            the table of all cells that are done
FOLDER/curve.png                       drawn by the command line, where labels were parted
"""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from finetune.checkpointing.run_folder import (
    CHECKPOINTS,
    LOG,
    MODEL,
    RECIPE,
    RESULT,
    RunFolder,
    read_result,
)
from finetune.comparison.cells import Cell, Design, plan_cells, select_cells
from finetune.comparison.majority import predict_majority
from finetune.comparison.table import CellResult, Table, build_table, write_table
from finetune.data.sources import open_rows
from finetune.distributed.calls import connect
from finetune.distributed.setup import RunAccelerator, choose_precision, create_accelerator
from finetune.distributed.signals import StopRequest
from finetune.prompting import PromptEvaluator, PromptOptions
from finetune.recipe.loading import dump_recipe, resolve_paths
from finetune.recipe.schema import Recipe
from finetune.storage import files
from finetune.training.events import Event, Finished, Interrupted, Notice
from finetune.training.recorder import load_run_recipe
from finetune.training.stops import agree, stopping_at_once
from finetune.training.train import events as train_events
from task_formats import Demonstrations, Task, UsageError


class CellStarted(NamedTuple):
    """A cell is about to be worked on."""

    cell: Cell
    number: int
    """1, 2, ... of all that were chosen."""
    cells: int


class CellFinished(NamedTuple):
    """A cell's scores are there."""

    found: CellResult
    number: int
    cells: int
    read: bool
    """It was done before, and only read now."""


def compare(recipe: Recipe, folder: Path | str, design: Design, **options: Any) -> Table:
    """Does what is left of a study and gives its table; `options` are those of `events`."""
    for _ in events(recipe, folder, design, **options):
        pass
    return read_table(recipe, folder, design)


def events(
    recipe: Recipe,
    folder: Path | str,
    design: Design,
    *,
    task: Task | None = None,
    only: Sequence[str] = (),
    keep_models: bool = False,
    overwrite: bool = False,
    device: str | None = None,
) -> Iterator[CellStarted | CellFinished | Event]:
    """Does the cells of a study, one after the other; yields their beginnings, events and ends.

    A cell that is done is read, one that was interrupted goes on from its last whole state.
    `only` chooses cells by name or glob, `overwrite` does the chosen ones anew. A trained cell
    keeps its recipe, log and result, and with `keep_models` its best model.
    Raises UsageError where a cell in the folder was told something else, before the first cell
    where there are too few rows for the shots of one, and for all that `training.events` and
    `PromptEvaluator` do; Interrupted where a signal asked for the end.
    """
    study = Study(resolve_paths(recipe, Path.cwd()), Path(folder), task, device)
    cells = plan_cells(study.recipe, design)
    chosen = select_cells(cells, only)
    # What was told something else is found before any work is done, chosen or not.
    known = {cell.name: study.read(cell) for cell in cells if not (overwrite and cell in chosen)}
    study.accelerator.wait_for_everyone()
    study.check_shots([cell for cell in chosen if not known.get(cell.name)])
    with StopRequest(connect(study.accelerator)) as request:
        for number, cell in enumerate(chosen, 1):
            if found := known.get(cell.name):
                if study.lacks_model(cell) and keep_models:
                    yield Notice(f"{cell.name} was done without keeping its model; add --overwrite")
                yield CellFinished(found, number, len(chosen), read=True)
                continue
            yield CellStarted(cell, number, len(chosen))
            yield from study.do(cell, request, overwrite=overwrite, keep_model=keep_models)
            yield CellFinished(study.found(cell), number, len(chosen), read=False)
            # One that came too late for that cell is for the study.
            wish, code = agree(study.accelerator, request.take(), request.exit_code)
            if wish == "stop":
                raise Interrupted(study.folder / cell.name, None, code)
    if study.accelerator.is_main_process:
        write_table(study.folder, read_table(recipe, folder, design))


def list_cells(
    recipe: Recipe, folder: Path | str, design: Design, only: Sequence[str] = ()
) -> list[tuple[Cell, CellResult | None]]:
    """All cells of a study, or the chosen ones, each with what it has found if it is done."""
    study = Study(resolve_paths(recipe, Path.cwd()), Path(folder))
    chosen = select_cells(plan_cells(study.recipe, design), only)
    return [(cell, study.read(cell)) for cell in chosen]


def read_table(recipe: Recipe, folder: Path | str, design: Design) -> Table:
    """The table of all cells of a study that are done."""
    done = [found for _, found in list_cells(recipe, folder, design) if found]
    return build_table(recipe, done)


class Study:
    """A folder of cells, and what they have in common: a task, a base, questions."""

    def __init__(
        self, recipe: Recipe, folder: Path, task: Task | None = None, device: str | None = None
    ) -> None:
        self.recipe, self.folder, self._device = recipe, folder, device
        self.task = recipe.task.resolve(task)
        self._own_task = task

    @cached_property
    def accelerator(self) -> RunAccelerator:
        """This process among its peers."""
        precision = choose_precision(self.recipe.train.precision, self._device)
        return create_accelerator(precision, self._device)

    @cached_property
    def asker(self) -> PromptEvaluator:
        """Base, questions and solved examples of all few-shot cells, loaded when first wanted."""
        return PromptEvaluator(self.recipe, self.task)

    @cached_property
    def _evaluated(self) -> str:
        """The fingerprint of the rows that all cells are scored on."""
        part = self.recipe.data
        return open_rows(part, str(part.evaluate)).fingerprint()

    def check_shots(self, cells: Sequence[Cell]) -> None:
        """UsageError where the rows cannot supply the solved examples of one of the cells."""
        most = max((cell.shots for cell in cells), default=0)
        if most:
            Demonstrations(self.asker.demonstration_pool, most)

    def read(self, cell: Cell) -> CellResult | None:
        """What a cell has found, if it is done; UsageError where it was told something else."""
        folder = self.folder / cell.name
        if (folder / RECIPE).exists():
            trusted = cell.recipe.base.trust_remote_code
            _check_same(load_run_recipe(folder, trusted), cell.recipe, folder)
        return self.found(cell) if (folder / RESULT).exists() else None

    def found(self, cell: Cell) -> CellResult:
        """What a cell that is done has found. UsageError where its result is no cell's."""
        folder = self.folder / cell.name
        try:
            return CellResult.of(cell, read_result(folder))
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            what = f"{RESULT} lacks what a cell writes: {error}"
            raise UsageError(what, where=str(folder), cure="Do it anew: --overwrite.") from error

    def lacks_model(self, cell: Cell) -> bool:
        """Whether a cell that is trained has kept no model."""
        return cell.work == "train" and not (self.folder / cell.name / MODEL).exists()

    def do(
        self, cell: Cell, request: StopRequest, *, overwrite: bool, keep_model: bool
    ) -> Iterator[Event]:
        """Works on a cell to its end; what is left of it, or all of it."""
        folder = self.folder / cell.name
        if cell.work == "train":
            happening = train_events(
                cell.recipe,
                folder,
                resume=not overwrite and _is_begun(folder),
                overwrite=overwrite,
                task=self._own_task,
                device=self._device,
            )
            yield from (event for event in happening if not isinstance(event, Finished))
            if self.accelerator.is_main_process:
                _tidy(folder, keep_model)
        else:
            then = time.perf_counter()
            with stopping_at_once(request, folder):
                values = self._guess(cell) if cell.work == "majority" else self._ask(cell)
            if self.accelerator.is_main_process:
                seconds = time.perf_counter() - then
                made_with = {"data": {"evaluate": self._evaluated}}
                _write(folder, cell, {**values, "made_with": made_with, "seconds": seconds})
        self.accelerator.wait_for_everyone()

    def _guess(self, cell: Cell) -> dict[str, Any]:
        found = predict_majority(cell.recipe, self.task)
        return {
            "scores": {"evaluate": found.scores},
            "intervals": found.intervals,
            "labels": found.rows,
            "answer": found.answer,
        }

    def _ask(self, cell: Cell) -> dict[str, Any]:
        result = self.asker.evaluate(PromptOptions(cell.shots, cell.seed))
        return {
            "scores": {"evaluate": result.scores},
            "intervals": result.intervals,
            "labels": result.mean_shots,
            "cut": result.truncated,
            "precision": result.precision,
        }


def _write(folder: Path, cell: Cell, values: dict[str, Any]) -> None:
    """A cell without training as a run that has nothing but a recipe and a result."""
    with RunFolder.open(folder, overwrite=True) as run:
        run.save_recipe(dump_recipe(cell.recipe))
        run.write_result(values)


def _is_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RECIPE, LOG))


def _tidy(folder: Path, keep_model: bool) -> None:
    """A finished cell is not resumed, and its model is mostly not wanted."""
    files.remove(folder / CHECKPOINTS)
    if not keep_model:
        files.remove(folder / MODEL)


def _check_same(old: Recipe, new: Recipe, folder: Path) -> None:
    """UsageError where a cell was told something else: its scores are not comparable."""
    sections = Recipe.model_fields.keys() - {"about"}
    was, is_now = (recipe.fixed_on_resume(sections) for recipe in (old, new))
    # A run may be resumed with more patience, but that changes its scores.
    was["train.patience"], is_now["train.patience"] = old.train.patience, new.train.patience
    for key in sorted(was.keys() | is_now.keys()):
        if was.get(key) != is_now.get(key):
            raise UsageError(
                f"this cell has another {key}: {was.get(key)!r}, not {is_now.get(key)!r}",
                where=str(folder),
                cure="Choose another folder for this study, or --overwrite the cell.",
            )
