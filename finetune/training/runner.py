"""Runs a training job: updates, evaluations, checkpoints, and the final scores."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from finetune.checkpointing.run_folder import read_recipe
from finetune.distributed.collectives import agree_on_request, barrier
from finetune.distributed.signals import Request, SignalListener
from finetune.evaluation.evaluate import RowLogits
from finetune.recipe.schema import StrictModel
from finetune.training.events import (
    Diverged,
    Evaluated,
    Event,
    Finished,
    Interrupted,
    Notice,
    Result,
)
from finetune.training.job import Evaluation, TrainingJob
from finetune.training.loop import run_updates
from finetune.training.progress import CheckpointTimer, TrainingProgress
from finetune.training.recorder import RunRecorder

_NONFINITE_CURE = "Lower --learning-rate, or look at the rows named in metrics.jsonl."

_UNKNOWN_NOISE_SCALE = (
    "the gradient noise scale is not known: the true gradient is lost in the noise, which more "
    "updates, or a larger batch, would average out"
)


def run(
    prepare: Callable[[Accelerator], TrainingJob],
    folder: Path,
    accelerator: Accelerator,
    config: StrictModel,
    *,
    resume: bool,
    overwrite: bool,
) -> Iterator[Event]:
    """Trains, evaluates and saves; yields every update and evaluation when it is done.

    Args:
        prepare: Builds the job, once this process owns the folder.
        folder: The run folder.
        accelerator: The processes of the job.
        config: The recipe or pre-training plan.
        resume: Continue from the latest checkpoint in the folder. A finished run goes on if
            `config` has more epochs.
        overwrite: Delete the run in the folder first.

    Raises:
        Interrupted: A signal asked the run to stop; a checkpoint was saved if training had begun.
        UsageError: Something is wrong with configuration, data, base or folder.
    """
    with (
        SignalListener() as signals,
        RunRecorder.open(folder, accelerator, resume=resume, overwrite=overwrite) as recorder,
    ):
        result = recorder.finished_result()
        if result and not recorder.is_longer(config):
            yield Notice(f"{folder} is already finished: nothing was trained")
            saved, lines = read_recipe(folder).splitlines(), config.to_yaml().splitlines()
            if changes := [line.strip() for line in lines if line not in saved]:
                yield Notice(f"ignored, because the run is finished: {'; '.join(changes)}")
            yield Finished(result)
            return
        with stop_at_once(signals, folder):
            job = prepare(accelerator)
            barrier(accelerator)
        progress, notices = recorder.begin(job)
        yield from map(Notice, notices)
        yield job.started(progress.update)
        runner = _Runner(job, recorder, signals, progress)
        yield from runner.train()
        yield from runner.finalize()


@contextmanager
def stop_at_once(signals: SignalListener, folder: Path) -> Iterator[None]:
    """Within the block a signal to stop raises Interrupted at once: there is nothing to save."""
    try:
        with signals.raise_on_stop():
            yield
    except BaseException:
        # Whatever the error is: a stopped process makes its peers fail in other ways.
        if signals.exit_code:
            raise Interrupted(folder, None, signals.exit_code) from None
        raise


def collect_result(events: Iterable[Event]) -> Result:
    """Consumes the events of a run and returns its result."""
    for event in events:
        if isinstance(event, Finished):
            return event.result
    raise RuntimeError("the run ended without a result")


class _Runner:
    """The course of one run. All processes execute it together."""

    def __init__(
        self,
        job: TrainingJob,
        recorder: RunRecorder,
        signals: SignalListener,
        progress: TrainingProgress,
    ) -> None:
        self.job, self.recorder, self.signals, self.progress = job, recorder, signals, progress
        schedule = job.schedule
        self.exit_code = 0
        self.timer = CheckpointTimer(schedule.checkpoint_minutes, schedule.checkpoint_updates)

    def train(self) -> Iterator[Event]:
        """Makes the remaining updates, with evaluations and checkpoints when they are due."""
        job, progress, schedule = self.job, self.progress, self.job.schedule
        # A run may have been stopped between an update and its evaluation, or has no model yet.
        is_missing = progress.evaluated_update < progress.update or progress.best_update == 0
        if progress.update and schedule.evaluate_after(progress.update) and is_missing:
            yield from self.evaluate()
        limits = (progress.max_tokens_per_forward, job.batch_config.max_tokens_per_forward)
        settings = job.settings._replace(max_tokens_per_forward=min(filter(None, limits)))
        remaining = range(progress.update + 1, job.sampler.updates + 1)
        steps = run_updates(
            job.model, job.optimizer, remaining, job.make_microbatches, settings, job.accelerator
        )
        if self.patience_is_exhausted():
            yield self.stopping_early()
            return
        for step in steps:
            progress.record_step(step)
            self.recorder.log_step(step)
            measured = step.group_norms is not None
            scale = self.recorder.gradient_moments.noise_scale() if measured else None
            yield step._replace(noise_scale=scale)
            yield from self.report_nonfinite()
            due = self.timer.is_due(step.number) or step.number == schedule.checkpoint_at
            request = self.next_request("save" if due else None)
            if request == "stop":
                yield from self.save_checkpoint()
                raise self.interrupted()
            if schedule.evaluate_after(step.number):
                yield from self.evaluate()
            at_epoch_end = step.number % job.sampler.updates_per_epoch == 0
            if request == "save" or (at_epoch_end and schedule.saves_checkpoints):
                yield from self.save_checkpoint()
            if self.patience_is_exhausted():
                yield self.stopping_early()
                return

    def evaluate(self) -> Iterator[Event]:
        """Scores the evaluation split; the best model so far is saved.

        A model is never the best if one of its scores is not finite, or if no update changed it.
        """
        self.recorder.flush()
        yield from self.report_nonfinite()
        update = self.progress.update
        evaluation = self.job.evaluation()
        if evaluation is None:
            self.progress.evaluated_update = update
            return
        scores = self.run_evaluation(evaluation)
        is_usable = not self.every_update_was_skipped() and _all_finite(scores)
        value = self.job.selection_value(scores) if is_usable else math.nan
        is_best = self.progress.record_evaluation(update, value)
        if is_best:
            self.recorder.save_model(self.job, update)
        event = Evaluated(update, self.job.sampler.epoch(update), scores, is_best)
        self.recorder.log("evaluate", event._asdict())
        yield event

    def run_evaluation(self, evaluation: Evaluation) -> dict[str, float]:
        """Computes an evaluation; signals are handled between its forward passes."""
        passes: list[RowLogits] = []
        for logits in evaluation.passes:
            passes.append(logits)
            if request := self.next_request(None):
                self.recorder.save_checkpoint(self.job, self.progress)
                if request == "stop":
                    raise self.interrupted()
        return evaluation.score(passes)

    def finalize(self) -> Iterator[Event]:
        """Scores the best model, reloaded from disk, and writes the result."""
        progress = self.progress
        self.refuse_useless_model()
        if progress.best_update == 0:
            self.recorder.save_model(self.job, progress.update)
            progress.best_update = progress.update
        saved_update = self.recorder.saved_model_update()
        if saved_update not in (None, progress.best_update):
            # A kill came after the model was saved, and before the checkpoint that counts it.
            yield Notice(f"the best model is that of update {saved_update}, saved before a kill")
            progress.best_update = saved_update
        scores: dict[str, dict[str, float]] = {}
        majority: dict[str, dict[str, float]] = {}
        for evaluation in self.job.final_evaluations(self.recorder.model_folder):
            if isinstance(evaluation, Notice):
                yield evaluation
            else:
                scores[evaluation.name] = self.run_evaluation(evaluation)
                if evaluation.majority is not None:
                    majority[evaluation.name] = evaluation.majority
                if not _all_finite(scores[evaluation.name]):
                    yield Notice(f"the scores of {evaluation.name} are not finite")
        if self.job.schedule.saves_checkpoints:
            self.recorder.save_checkpoint(self.job, progress)
        counts = (progress.best_update, progress.update, progress.tokens, progress.seconds)
        scale = self.recorder.gradient_moments.noise_scale()
        if scale is None and self.job.settings.noise_scale:
            yield Notice(_UNKNOWN_NOISE_SCALE)
        result = Result(scores, *counts, self.recorder.folder, majority, scale)
        self.recorder.write_result(self.job, result)
        yield Finished(result)

    def every_update_was_skipped(self) -> bool:
        """Whether no update so far had a finite loss and gradient."""
        return 0 < self.progress.update <= self.progress.consecutive_nonfinite

    def refuse_useless_model(self) -> None:
        """Raises Diverged if training changed nothing, or no evaluation had finite scores."""
        if self.every_update_was_skipped():
            what = "the loss or gradient of every update was not finite: nothing was trained"
        elif self.progress.best_update == 0 and self.job.evaluation() is not None:
            what = "no evaluation had finite scores, so there is no model to save"
        else:
            return
        raise Diverged(what, where=str(self.recorder.folder), cure=_NONFINITE_CURE)

    def next_request(self, local_request: Request | None) -> Request | None:
        """The request of any process's signal or timer. Also updates `exit_code`."""
        request = self.signals.take() or local_request
        request, self.exit_code = agree_on_request(
            request, self.signals.exit_code, self.job.accelerator
        )
        return request

    def interrupted(self) -> Interrupted:
        """The exception for a run that was stopped after saving a checkpoint."""
        return Interrupted(self.recorder.folder, self.progress.update, self.exit_code)

    def save_checkpoint(self) -> Iterator[Event]:
        """Saves a checkpoint, once everything before it is in the log."""
        self.recorder.flush()
        yield from self.report_nonfinite()
        self.recorder.save_checkpoint(self.job, self.progress)

    def report_nonfinite(self) -> Iterator[Event]:
        """Names the examples of updates that were not finite; too many such updates end the run."""
        for number in self.recorder.take_nonfinite():
            rows = ", ".join(self.job.find_nonfinite_examples(number))
            # The name of this event, and of train.most_refused, is older than "nonfinite".
            self.recorder.log("refused", {"update": number, "rows": rows})
            yield Notice(f"update {number} skipped: loss or gradient not finite, in rows {rows}")
        count = self.progress.consecutive_nonfinite = self.recorder.consecutive_nonfinite
        if count >= self.job.schedule.max_nonfinite:
            raise Diverged(
                f"the loss or gradient of {count} updates in a row was not finite",
                where=str(self.recorder.folder),
                cure=_NONFINITE_CURE,
            )

    def stopping_early(self) -> Notice:
        """Says why training ends before its last update."""
        count = self.progress.evaluations_since_best
        return Notice(f"stopping early: no improvement for {count} evaluations")

    def patience_is_exhausted(self) -> bool:
        """Whether to stop early."""
        patience = self.job.schedule.patience
        return patience is not None and self.progress.evaluations_since_best >= patience


def _all_finite(scores: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, scores.values()))
