"""The course of a run from its first update to its result, written once for every job."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from finetune.checkpointing.run_folder import read_recipe
from finetune.distributed.calls import connect
from finetune.distributed.collectives import barrier
from finetune.distributed.fsdp import is_sharded
from finetune.distributed.memory import is_out_of_memory
from finetune.distributed.signals import StopRequest
from finetune.evaluation.evaluate import RowLogits
from finetune.recipe.yaml_documents import compare_documents
from finetune.training.events import Evaluated, Event, Finished, Interrupted, Notice, Result
from finetune.training.job import TrainingJob, Watch
from finetune.training.loop import optimize
from finetune.training.progress import CheckpointTimer, TrainingProgress
from finetune.training.recorder import RunRecorder
from finetune.training.stops import agree, stopping_at_once
from finetune.training.verdict import finalize
from task_formats import UsageError


def run(
    prepare: Callable[[Accelerator], TrainingJob],
    folder: Path,
    accelerator: Accelerator,
    told: str,
    *,
    resume: bool,
    overwrite: bool,
) -> Iterator[Event]:
    """Trains, evaluates and saves; yields every update and evaluation as it is done.

    `prepare` makes the job when the folder is taken; `told` is what it is told, as YAML. Closing
    the generator ends the run with its folder in order. Interrupted is raised when a signal asked
    for the end, after a whole state was saved.
    """
    with ExitStack() as stack:
        # To the very end: what the ledger still writes then is not to be killed by an echo.
        request = stack.enter_context(StopRequest(connect(accelerator)))
        ledger = stack.enter_context(
            RunRecorder.open(folder, accelerator, resume=resume, overwrite=overwrite)
        )
        if finished := ledger.finished():
            yield Notice(f"{folder} is finished already: nothing was trained")
            if changes := compare_documents(read_recipe(folder), told):
                yield Notice(f"ignored, since the run is finished: {'; '.join(changes)}")
            yield Finished(finished)
            return
        with stopping_at_once(request, folder):
            job = prepare(accelerator)
            # All leave together: who is further would wait for one that stops here.
            barrier(accelerator)
        progress, notices = ledger.begin(job)
        yield from map(Notice, notices)
        yield job.started(progress.update)
        watch = partial(_watch, job=job, ledger=ledger, request=request, progress=progress)
        yield from _train(job, ledger, request, progress, watch)
        yield from finalize(job, ledger, progress, watch)


def finish_run(events: Iterable[Event]) -> Result:
    """The result of a run, when all its events have come."""
    for event in events:
        if isinstance(event, Finished):
            return event.result
    raise RuntimeError("the run ended without a result")


def _train(
    job: TrainingJob,
    ledger: RunRecorder,
    request: StopRequest,
    progress: TrainingProgress,
    watch: Watch,
) -> Iterator[Event]:
    """Updates, and evaluations and checkpoints when they are due."""
    due = job.schedule.due
    clock = CheckpointTimer(job.schedule)
    # A run that was stopped between an update and its evaluation begins with that evaluation.
    if due(progress.update) and progress.evaluated < progress.update:
        yield from _evaluate(job, ledger, progress, watch)
    rest = range(progress.update + 1, job.sampler.updates + 1)
    # A budget that was halved is remembered; one that was lowered for the rest of the run counts.
    settings = job.settings._replace(
        max_tokens_per_forward=min(
            progress.budget or job.batch_config.max_tokens_per_forward,
            job.batch_config.max_tokens_per_forward,
        ),
        halts=partial(_pause, job, ledger, request, progress),
    )
    steps = optimize(
        job.parallel_model, job.optimizer, rest, job.make_microbatches, settings, job.accelerator
    )
    for step in () if _worn_out(job, progress) else steps:
        progress.advance(step)
        ledger.log_step(step)
        yield step
        yield from _explain(job, ledger, progress)
        own = request.take() or ("save" if clock.due(step.number) else None)
        wish, code = agree(job.accelerator, own, request.exit_code)
        if wish == "stop":
            yield from _save(job, ledger, progress)
            raise Interrupted(ledger.folder, progress.update, code)
        if due(step.number):
            yield from _evaluate(job, ledger, progress, watch)
        at_epoch = job.schedule.keeps_states and step.number % job.sampler.updates_per_epoch == 0
        if wish == "save" or at_epoch:
            yield from _save(job, ledger, progress)
        if _worn_out(job, progress):
            yield Notice(f"no better score for {progress.stale} evaluations: stopping early")
            return
    if progress.update < job.sampler.updates and not _worn_out(job, progress):
        # Left between two passes of an update: the weights are still those of the one before.
        _, code = agree(job.accelerator, "stop", request.exit_code)
        yield from _save(job, ledger, progress)
        raise Interrupted(ledger.folder, progress.update, code)


def _pause(
    job: TrainingJob, ledger: RunRecorder, request: StopRequest, progress: TrainingProgress
) -> bool:
    """Between two passes of an update: whether to leave it there, once a wish to save is done.

    Weights and moments are still those of the update before, and a state holds nothing else. Shards
    are saved by all processes, and these make each pass together: before it they agree on what one
    of them was told. A whole model is written by the first process, which hears what any of them
    was told; none waits for another.
    """
    together = is_sharded(job.model)
    wish = request.wanted
    if together:
        wish, _ = agree(job.accelerator, wish, 0)
    if wish == "save" and ledger.can_write(together):
        request.take()
        progress.refused = ledger.refused_in_a_row
        try:
            ledger.save(job, progress)
        except RuntimeError as error:
            if together or not is_out_of_memory(error):
                raise
            request.repeat()  # There may be room for the copy of a state after the update.
    return wish == "stop"


def _save(job: TrainingJob, ledger: RunRecorder, progress: TrainingProgress) -> Iterator[Event]:
    """Writes a whole state, once everything before it is in the log."""
    ledger.flush()
    yield from _explain(job, ledger, progress)
    ledger.save(job, progress)


def _explain(job: TrainingJob, ledger: RunRecorder, progress: TrainingProgress) -> Iterator[Event]:
    """Names the rows behind updates that were refused; too many in a row end the run."""
    for number in ledger.refused():
        rows = ", ".join(job.find_nonfinite_examples(number))
        ledger.log("refused", {"update": number, "rows": rows})
        yield Notice(f"update {number} was refused: not finite, in rows {rows}")
    progress.refused = ledger.refused_in_a_row
    if progress.refused >= job.schedule.most_refused:
        raise UsageError(
            f"{progress.refused} updates in a row had a loss or gradient that is not finite",
            where=str(ledger.folder),
            cure="Lower --learning-rate, or look at the rows named in metrics.jsonl.",
        )


def _evaluate(
    job: TrainingJob, ledger: RunRecorder, progress: TrainingProgress, watch: Watch
) -> Iterator[Event]:
    """Scores the evaluation split; the best state so far is saved as the run's model."""
    ledger.flush()
    yield from _explain(job, ledger, progress)
    rounds = job.rounds()
    if rounds is None:
        progress.evaluated = progress.update
        return
    judgement = job.judge(watch(rounds))
    best = progress.note(progress.update, judgement.value)
    if best:
        ledger.save_model(job)
    epoch = job.sampler.epoch(progress.update)
    event = Evaluated(progress.update, epoch, judgement.scores, best)
    ledger.log("evaluate", event._asdict())
    yield event


def _watch(
    rounds: Iterable[RowLogits],
    job: TrainingJob,
    ledger: RunRecorder,
    request: StopRequest,
    progress: TrainingProgress,
) -> Iterator[RowLogits]:
    """The rounds of an evaluation; between two of them a signal's wish is done."""
    for found in rounds:
        yield found
        wish, code = agree(job.accelerator, request.take(), request.exit_code)
        if wish:
            ledger.save(job, progress)
        if wish == "stop":
            raise Interrupted(ledger.folder, progress.update, code)


def _worn_out(job: TrainingJob, progress: TrainingProgress) -> bool:
    patience = job.schedule.patience
    return patience is not None and progress.stale >= patience
