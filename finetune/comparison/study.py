"""Runs a study: each cell in its own folder, run once and read afterwards.

FOLDER/CELL/recipe.yaml, result.json   and, for a trained cell, the other files of a run
FOLDER/table.json, table.md            the table of all finished cells
FOLDER/curve.png                       written by the command line for several fractions of labels
"""

import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune.checkpointing.run_folder import (
    CHECKPOINTS,
    LOG,
    MODEL,
    RECIPE,
    RESULT,
    RunFolder,
    load_run_recipe,
    read_result,
)
from finetune.comparison.cells import Cell, Design, plan_cells, select_cells
from finetune.comparison.table import CellResult, Table, build_table, write_table
from finetune.data.held_out import HeldOutDraw, open_split
from finetune.data.splits import read_split
from finetune.distributed.collectives import agree_on_request
from finetune.distributed.setup import RunAccelerator, choose_precision, create_accelerator
from finetune.distributed.signals import SignalListener
from finetune.evaluation.majority import majority_prediction
from finetune.evaluation.metrics import bootstrap_interval, score_predictions
from finetune.prompting import PromptEvaluator, PromptOptions
from finetune.recipe.differences import compare_settings
from finetune.recipe.loading import resolve_paths
from finetune.recipe.schema import Recipe
from finetune.storage import files
from finetune.training.events import (
    CellFinished,
    CellStarted,
    Event,
    Finished,
    Interrupted,
    Notice,
)
from finetune.training.finetuning import events as train_events
from finetune.training.runner import stop_at_once
from task_formats import Demonstrations, Task, UsageError


def compare(recipe: Recipe, folder: Path | str, design: Design, **options: Any) -> Table:
    """Runs the unfinished cells of a study and returns its table; takes the options of `events`."""
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
) -> Iterator[CellStarted[Cell] | CellFinished[CellResult] | Event]:
    """Runs the cells of a study; yields the start and end of each, and the events of training runs.

    Finished cells are read, and interrupted ones resume from their latest checkpoint.

    Args:
        recipe: The task, the base, the data and how to train.
        folder: The study; each cell has a folder in it.
        design: What is compared.
        task: Replaces the recipe's task, for tasks defined in Python.
        only: Names or globs of the cells to run; empty runs all.
        keep_models: Keep the best model of every trained cell, not only its recipe, log and result.
        overwrite: Repeat the selected cells even if they are finished.
        device: cpu, cuda, cuda:1, ...; None takes the best available.

    Raises:
        UsageError: A cell in the folder has another recipe, or the training split has too few rows
            for demonstrations (both before the first cell runs), or a cell raises it.
        Interrupted: A signal requested a stop.
    """
    study = Study(resolve_paths(recipe, Path.cwd()), Path(folder), task, device)
    cells = plan_cells(study.recipe, design)
    selected = select_cells(cells, only)
    # Cells with another recipe are refused before anything runs, whether they are selected or not.
    finished = {
        cell.name: study.load(cell) for cell in cells if not (overwrite and cell in selected)
    }
    study.accelerator.wait_for_everyone()
    shots = max((cell.shots for cell in selected if not finished.get(cell.name)), default=0)
    if shots:
        # Too few rows are reported before the first cell runs.
        Demonstrations(study.prompt_evaluator.demonstration_pool, shots)
    with SignalListener() as signals:
        for number, cell in enumerate(selected, 1):
            if result := finished.get(cell.name):
                if cell.trains and keep_models and not (study.folder / cell.name / MODEL).exists():
                    yield Notice(f"{cell.name} was done without keeping its model; add --overwrite")
                yield CellFinished(result, number, len(selected), reused=True)
                continue
            yield CellStarted(cell, number, len(selected))
            yield from study.run(cell, signals, overwrite=overwrite, keep_model=keep_models)
            yield CellFinished(study.read_result(cell), number, len(selected), reused=False)
            # A signal that came too late for the cell stops the study.
            request, code = agree_on_request(signals.take(), signals.exit_code, study.accelerator)
            if request == "stop":
                raise Interrupted(study.folder / cell.name, None, code)
    if study.accelerator.is_main_process:
        write_table(study.folder, read_table(recipe, folder, design))


def list_cells(
    recipe: Recipe, folder: Path | str, design: Design, only: Sequence[str] = ()
) -> list[tuple[Cell, CellResult | None]]:
    """Returns the selected cells of a study, each with its result if it is finished."""
    study = Study(resolve_paths(recipe, Path.cwd()), Path(folder))
    selected = select_cells(plan_cells(study.recipe, design), only)
    return [(cell, study.load(cell)) for cell in selected]


def read_table(recipe: Recipe, folder: Path | str, design: Design) -> Table:
    """Returns the table of all finished cells of a study."""
    results = [result for _, result in list_cells(recipe, folder, design) if result]
    return build_table(recipe, results)


class Study:
    """A folder of cells for one task, base and evaluation split."""

    def __init__(
        self, recipe: Recipe, folder: Path, task: Task | None = None, device: str | None = None
    ) -> None:
        self.recipe, self.folder, self._device = recipe, folder, device
        self.task = recipe.task.resolve(task)
        self._own_task = task

    @cached_property
    def accelerator(self) -> RunAccelerator:
        """Device and processes of the study."""
        precision = choose_precision(self.recipe.train.precision, self._device)
        return create_accelerator(precision, self._device)

    @cached_property
    def prompt_evaluator(self) -> PromptEvaluator:
        """Base and questions of all prompted cells."""
        return PromptEvaluator(self.recipe, self.task)

    def load(self, cell: Cell) -> CellResult | None:
        """Returns the result of a cell, None if unfinished; UsageError if it has another recipe."""
        folder = self.folder / cell.name
        if (folder / RECIPE).exists():
            trusted = cell.recipe.base.trust_remote_code
            _check_same_recipe(load_run_recipe(folder, trusted), cell.recipe, folder)
        return self.read_result(cell) if (folder / RESULT).exists() else None

    def read_result(self, cell: Cell) -> CellResult:
        """Returns the result of a finished cell."""
        return CellResult.from_json(cell, read_result(self.folder / cell.name))

    def run(
        self, cell: Cell, signals: SignalListener, *, overwrite: bool, keep_model: bool
    ) -> Iterator[Event]:
        """Runs a cell, or what is left of it, to its end."""
        folder = self.folder / cell.name
        if cell.trains:
            resume = not overwrite and any((folder / name).exists() for name in (RECIPE, LOG))
            options: Any = {"resume": resume, "overwrite": overwrite, "device": self._device}
            run = train_events(cell.recipe, folder, task=self._own_task, **options)
            yield from (event for event in run if not isinstance(event, Finished))
            if self.accelerator.is_main_process:
                files.remove(folder / CHECKPOINTS)
                if not keep_model:
                    files.remove(folder / MODEL)
        else:
            start = time.perf_counter()
            with stop_at_once(signals, folder):
                values = self._score_untrained(cell)
            if self.accelerator.is_main_process:
                data = cell.recipe.data
                rows = open_split(data, self.task, str(data.evaluation_split))
                values["made_with"] = {"data": {"evaluate": rows.fingerprint()}}
                values["seconds"] = time.perf_counter() - start
                with RunFolder.open(folder, overwrite=True) as run_folder:
                    run_folder.delete_overwritten()
                    run_folder.write_recipe(cell.recipe.to_yaml())
                    run_folder.write_result(values)
        self.accelerator.wait_for_everyone()

    def _score_untrained(self, cell: Cell) -> dict[str, Any]:
        """The content of result.json for the majority class or prompting."""
        if cell.kind == "majority":
            return predict_majority(cell.recipe, self.task)
        result = self.prompt_evaluator.evaluate(PromptOptions(cell.shots, cell.seed))
        return {
            "scores": {"evaluate": result.scores},
            "intervals": result.intervals,
            "labels": result.mean_shots,
            "cut": result.truncated,
            "precision": result.precision,
        }


def predict_majority(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Scores the most frequent training label, or the mean training score, on the evaluation split.

    Returns scores, 95 % bootstrap intervals over rows, the number of training labels and the
    answer.
    """
    config, draw = recipe.data, HeldOutDraw(recipe.data, task)
    train, evaluate = (
        [e.label for e in read_split(task, config, split, limit=config.limit, draw=draw)]
        for split in ("train", "evaluate")
    )
    answer = majority_prediction(task, train)
    predicted, gold = np.array([answer] * len(evaluate)), np.array(evaluate)

    def metrics(predicted: np.ndarray, gold: np.ndarray) -> dict[str, float]:
        return score_predictions(task, predicted.tolist(), gold.tolist())

    return {
        "scores": {"evaluate": metrics(predicted, gold)},
        "intervals": bootstrap_interval(metrics, predicted, gold),
        "labels": len(train),
        "answer": answer.label,
    }


def _check_same_recipe(old: Recipe, new: Recipe, folder: Path) -> None:
    """Raises UsageError if a cell has another recipe, so that scores are not comparable."""
    sections = Recipe.model_fields.keys() - {"about", "profile"}
    # These may change when a run is resumed, but cells would not be comparable.
    further = ("base.path", "base.revision", "task.prompt", "task.metrics", "train.patience")
    if difference := compare_settings(old, new, sections, further):
        cure = "Choose another folder for this study, or --overwrite the cell."
        raise UsageError(f"this cell has another {difference}", where=str(folder), cure=cure)
