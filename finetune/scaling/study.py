"""Runs a scaling study: each cell is a pre-training run in its own folder.

    DIR/CELL/        recipe.yaml, metrics.jsonl and result.json of a run; while others need it,
                     stable/, its checkpoint at the end of the constant learning rate
    DIR/corpus/      the tokenizer and the token ids, which all cells share
    DIR/text.json    sizes of vocabulary, blocks and texts
    DIR/losses.csv   N, D, C and loss of all finished cells, for gptft scale fit DIR

Cells of several machines are put together by copying their folders into one; running the study
again there writes the table.
"""

import csv
import io
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from finetune.checkpointing.checkpoint import load_checkpoint, save_checkpoint
from finetune.checkpointing.run_folder import (
    CHECKPOINTS,
    LOG,
    MARKER,
    MODEL,
    RECIPE,
    RESULT,
    read_recipe,
    read_result,
)
from finetune.distributed.setup import RunAccelerator, choose_precision, create_accelerator
from finetune.distributed.signals import SignalListener
from finetune.pretraining.job import events as pretrain_events
from finetune.pretraining.job import prepare_pretraining
from finetune.pretraining.plan import Plan, find_stable_end, parse_plan
from finetune.recipe.differences import describe_difference
from finetune.scaling.cells import Cell, plan_cells, select_cells
from finetune.scaling.study_plan import StudyPlan
from finetune.storage import files, json_files
from finetune.training.estimate import run_trial
from finetune.training.events import CellFinished, CellStarted, Event, Finished, Interrupted
from finetune.training.runner import stop_at_once
from task_formats import UsageError

STABLE, TEXT, LOSSES = "stable", "text.json", "losses.csv"
TRIAL_SECONDS = 2.0
"""Length of the trial of each size, for the estimate of the time."""


class CellResult(NamedTuple):
    """A finished cell."""

    cell: Cell
    loss: float
    """Nats per token of the evaluation text."""
    bits_per_byte: float
    tokens: int
    """Predicted tokens D."""
    seconds: float
    """Training time of the run, with the part that it took over from another one."""
    evaluation_fingerprint: str


class TimeEstimate(NamedTuple):
    """How long the cells that are to do will take, from a trial of each size."""

    seconds: float
    cells: int


class CellFailed(NamedTuple):
    """A cell ended with an error; the others go on."""

    cell: Cell
    error: UsageError


class TextSizes(NamedTuple):
    """What the corpus turned out to be."""

    vocabulary: int
    block_tokens: float
    """Mean tokens of a block."""
    training_tokens: int
    evaluation_tokens: int


StudyEvent = TimeEstimate | CellStarted[Cell] | CellFinished[CellResult] | CellFailed | Event


def events(
    plan: StudyPlan,
    folder: Path | str,
    *,
    only: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
    keep_models: bool = False,
) -> Iterator[StudyEvent]:
    """Runs the cells of a study; yields their starts, ends and events.

    Finished cells are read, and interrupted ones resume from their latest checkpoint. At the end
    the table of all finished cells is written.

    Args:
        plan: The study.
        folder: Gets a folder for each cell.
        only: Names or globs of the cells to run; empty runs all.
        shard: (i, n) runs the i-th of n parts, from 1.
        keep_models: Keep the model of every cell, not only its recipe, log and result.

    Raises:
        UsageError: A cell in the folder has another plan (before the first cell runs), or a cell
            failed (after the last one).
        Interrupted: A signal requested a stop.
    """
    study = Study(plan, Path(folder))
    if study.accelerator.num_processes > 1:
        cure = "Start it without a launcher; --shard divides it among machines or GPUs."
        raise UsageError("a study runs in one process", cure=cure)
    selected = select_cells(study.cells, only, shard)
    # Cells with another plan are refused before anything runs, whether they are selected or not.
    finished = {cell.name: study.load(cell) for cell in study.cells}
    to_do = [cell for cell in selected if not finished[cell.name]]
    failed: list[str] = []
    with SignalListener() as signals:
        if to_do:
            with stop_at_once(signals, study.folder):
                yield study.estimate(to_do)
        for number, cell in enumerate(selected, 1):
            if result := finished[cell.name]:
                yield CellFinished(result, number, len(selected), reused=True)
                continue
            yield CellStarted(cell, number, len(selected))
            try:
                yield from study.run(cell, keep_model=keep_models)
            except UsageError as error:
                failed.append(cell.name)
                yield CellFailed(cell, error)
                continue
            result = study.read_result(cell)
            yield CellFinished(result, number, len(selected), reused=False)
            study.write_table()
            # A signal that came too late for the cell stops the study.
            if signals.take() == "stop":
                raise Interrupted(study.folder / cell.name, None, signals.exit_code)
    study.write_table()
    if failed:
        cure = "Correct the cause and run the same command: only these cells run again."
        raise UsageError(f"{len(failed)} cells failed: {', '.join(failed)}", cure=cure)


class Study:
    """The folder of a study."""

    def __init__(self, plan: StudyPlan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.cells = plan_cells(plan)
        self._parents = {cell.parent for cell in self.cells}

    @cached_property
    def accelerator(self) -> RunAccelerator:
        """Device and precision."""
        return create_accelerator(choose_precision(self.plan.train.precision))

    def load(self, cell: Cell) -> CellResult | None:
        """Returns the result of a cell, None if unfinished; UsageError if it has another plan."""
        folder = self.folder / cell.name
        if (folder / RECIPE).exists():
            _check_same_plan(parse_plan(read_recipe(folder), str(folder)), cell.plan, folder)
        return self.read_result(cell) if (folder / RESULT).exists() else None

    def read_result(self, cell: Cell) -> CellResult:
        """Returns the result of a finished cell."""
        result = read_result(self.folder / cell.name)
        scores = result["scores"]["evaluate"]
        return CellResult(
            cell,
            float(scores["loss"]),
            float(scores["bits_per_byte"]),
            # The first token of a block is read, but not predicted.
            result["tokens"] - cell.updates * cell.plan.train.batch_size,
            float(result["seconds"]),
            result["made_with"]["data"]["evaluate"],
        )

    def has_begun(self, cell: Cell) -> bool:
        """Whether there is something to resume."""
        return any((self.folder / cell.name / name).exists() for name in (RECIPE, LOG, CHECKPOINTS))

    def estimate(self, cells: Sequence[Cell]) -> TimeEstimate:
        """Encodes the corpus, and makes a few updates of every size to measure its speed."""
        speeds: dict[str, float] = {}
        sizes: TextSizes | None = None
        for cell in cells:
            shape = cell.plan.shape.to_yaml()
            if shape not in speeds:
                job = prepare_pretraining(self._resolve(cell), self.folder, self.accelerator)
                speeds[shape] = run_trial(job, TRIAL_SECONDS).tokens_per_second
                if sizes is None and job.evaluation_text is not None:
                    sizes = TextSizes(
                        len(job.tokenizer),
                        float(job.lengths.tokens.mean()),
                        int(job.lengths.tokens.sum()) - len(job.examples),
                        job.evaluation_text.blocks.targets,
                    )
        assert sizes is not None
        files.write_atomically(self.folder / TEXT, json_files.encode(sizes._asdict()) + b"\n")
        seconds = 0.0
        for cell in cells:
            updates = cell.updates - cell.parent_updates
            tokens = updates * cell.plan.train.batch_size * sizes.block_tokens
            # Two evaluations, of the trained and of the saved model, without backward passes.
            tokens += 2 * sizes.evaluation_tokens / 3
            seconds += tokens / speeds[cell.plan.shape.to_yaml()]
        return TimeEstimate(seconds, len(cells))

    def read_sizes(self) -> TextSizes | None:
        """Returns what is known of the corpus; None before the first cell has run."""
        path = self.folder / TEXT
        if not path.exists():
            return None
        return TextSizes(**json_files.decode(path.read_bytes(), str(path)))

    def run(self, cell: Cell, *, keep_model: bool = False) -> Iterator[Event]:
        """Runs a cell, or what is left of it, to its end."""
        folder, parent = self.folder / cell.name, self.folder / (cell.parent or "-") / STABLE
        if cell.parent and parent.exists() and not (folder / RECIPE).exists():
            branch(parent, self._resolve(cell), folder)
        for event in pretrain_events(self._resolve(cell), folder, resume=self.has_begun(cell)):
            self._keep_stable(cell)
            if not isinstance(event, Finished):
                yield event
        files.remove(folder / CHECKPOINTS)
        if not keep_model:
            files.remove(folder / MODEL)
        if cell.parent:
            files.remove(parent)

    def _keep_stable(self, cell: Cell) -> None:
        """Copies the checkpoint at the end of the constant rate, before newer ones replace it."""
        folder = self.folder / cell.name
        update = find_stable_end(cell.updates, cell.plan.train.decay)
        source, target = folder / CHECKPOINTS / f"update-{update:08d}", folder / STABLE
        if cell.name in self._parents and source.exists() and not target.exists():
            with files.replace_folder(target) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True)

    def _resolve(self, cell: Cell) -> Plan:
        shards = str(self.folder.absolute() / str(cell.plan.corpus.shards))
        corpus = cell.plan.corpus.model_copy(update={"shards": shards})
        return cell.plan.model_copy(update={"corpus": corpus})

    def write_table(self) -> None:
        """Writes losses.csv."""
        results = [result for cell in self.cells if (result := self.load(cell))]
        sizes = self.read_sizes()
        if results and sizes:
            content = format_losses(choose_best(results), sizes)
            files.write_atomically(self.folder / LOSSES, content)


def list_cells(
    plan: StudyPlan,
    folder: Path | str,
    only: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
) -> list[tuple[Cell, CellResult | None, bool]]:
    """Returns the selected cells, each with its result and whether it has begun."""
    study = Study(plan, Path(folder))
    return [
        (cell, study.load(cell), study.has_begun(cell))
        for cell in select_cells(study.cells, only, shard)
    ]


def branch(checkpoint: Path, plan: Plan, folder: Path) -> None:
    """Lets a run start from the end of the constant learning rate of a shorter one.

    Up to there both make the same updates, so the run ends as if it had made them itself.

    Args:
        checkpoint: Of the shorter run.
        plan: The run.
        folder: Its folder.
    """
    found = load_checkpoint(checkpoint)
    old = parse_plan(found.metadata["config"], str(checkpoint))
    train = old.train.model_copy(update={"updates": plan.train.updates})
    metadata = {
        **found.metadata,
        "config": old.model_copy(update={"train": train}).to_yaml(),
        "log_bytes": 0,
    }
    files.write_atomically(folder / MARKER, "A run of gptft made this folder.\n")
    update = found.metadata["progress"]["update"]
    save_checkpoint(folder / CHECKPOINTS, update, found.tensors, metadata)


def choose_best(results: Sequence[CellResult]) -> list[CellResult]:
    """Returns, of each size and number of tokens, the runs of the best learning rate.

    That is the factor with the lowest mean loss over its seeds.

    Raises:
        UsageError: The losses are those of different texts.
    """
    for result in results:
        if result.evaluation_fingerprint != results[0].evaluation_fingerprint:
            names = f"{results[0].cell.name} and {result.cell.name}"
            cure = "The text has changed; delete the folder of the older cell."
            raise UsageError(f"{names} were evaluated on different texts", cure=cure)
    losses: dict[str, dict[float, list[float]]] = {}
    for result in results:
        group = losses.setdefault(result.cell.group, {})
        group.setdefault(result.cell.factor, []).append(result.loss)
    best = {name: min(group, key=lambda f: fmean(group[f])) for name, group in losses.items()}
    return [result for result in results if best[result.cell.group] == result.cell.factor]


def format_losses(results: Sequence[CellResult], sizes: TextSizes) -> str:
    """Returns the CSV that gptft scale fit reads.

    N is without embeddings and output layer; C has all FLOPs.
    """
    rows = []
    for result in results:
        cell, shape = result.cell, result.cell.plan.shape
        parameters = cell.count_parameters(sizes.vocabulary)
        blocks = cell.updates * cell.plan.train.batch_size
        flops = cell.count_flops(sizes.vocabulary, 1 + result.tokens / blocks)
        rows.append(
            {
                "cell": cell.name,
                "layers": shape.layers,
                "width": shape.width,
                "N": parameters.blocks,
                "N_total": parameters.total,
                "D": result.tokens,
                "C": f"{flops.total:.6g}",
                "C_layers": f"{flops.layers:.6g}",
                "C_attention": f"{flops.attention:.6g}",
                "C_output": f"{flops.output:.6g}",
                "loss": f"{result.loss:.6f}",
                "bits_per_byte": f"{result.bits_per_byte:.6f}",
                "learning_rate": f"{cell.plan.train.learning_rate:.6g}",
                "seed": cell.plan.train.seed,
                "updates": cell.updates,
                "seconds": f"{result.seconds:.1f}",
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _check_same_plan(old: Plan, new: Plan, folder: Path) -> None:
    """Raises UsageError if a cell was trained differently, so that losses are not comparable."""
    sections = ("tokenizer", "shape", "train")
    old_values, new_values = old.fixed_on_resume(sections), new.fixed_on_resume(sections)
    if difference := describe_difference(old_values, new_values):
        cure = "Choose another folder for this study, or delete that of the cell."
        raise UsageError(f"this cell has another {difference}", where=str(folder), cure=cure)
