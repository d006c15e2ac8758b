"""The end of a run: the best state, read back from the disk, scored on every split."""

from collections.abc import Iterator

from finetune.training.events import Event, Finished, Notice, Result
from finetune.training.job import TrainingJob, Watch
from finetune.training.progress import TrainingProgress
from finetune.training.recorder import RunRecorder


def finalize(
    job: TrainingJob, ledger: RunRecorder, progress: TrainingProgress, watch: Watch
) -> Iterator[Event]:
    """Scores what will be used later: the saved model, not the one in memory."""
    if progress.best_update == 0:
        ledger.save_model(job)
        progress.best_update = progress.update
    scores: dict[str, dict[str, float]] = {}
    for found in job.final_scores(ledger.folder / "model", watch):
        if isinstance(found, Notice):
            yield found
        else:
            name, values = found
            scores[name] = values
    if job.schedule.keeps_states:
        ledger.save(job, progress)
    result = Result(
        scores, progress.best_update, job.sampler.updates, progress.tokens, progress.seconds,
        ledger.folder,
    )  # fmt: skip
    ledger.write_result(job, result)
    yield Finished(result)
