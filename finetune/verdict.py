"""The end of a training run: the best state, read back from the disk, scored on every split."""

from collections.abc import Iterator

from finetune.evaluation import evaluate, read_rounds
from finetune.events import Event, Finished, Notice, Result
from finetune.job import Job
from finetune.ledger import Ledger
from finetune.progress import Progress
from finetune.saved import load_model
from finetune.splits import Split, encode_split


def conclude(job: Job, ledger: Ledger, progress: Progress) -> Iterator[Event]:
    """Scores what `gptft predict` will use: the saved model, not the one in memory."""
    if progress.best_update == 0:
        ledger.save_model(job)
        progress.best_update = progress.update
    model, _ = load_model(ledger.folder / "model", job.task)
    model.to(job.accelerator.device)
    scores = {}
    for name, split in _splits(job):
        if all(example.label is None for example in split.examples):
            yield Notice(f"{name} has no labels: nothing to score")
            continue
        rounds = read_rounds(model, split.examples, job.reading, job.accelerator)
        positive = job.recipe.task.positive
        scores[name] = evaluate(rounds, split.examples, job.task, job.accelerator, positive).scores
    ledger.save(job, progress)
    result = Result(
        scores, progress.best_update, job.order.updates, progress.tokens, progress.seconds,
        ledger.folder,
    )  # fmt: skip
    ledger.write_result(job, result)
    yield Finished(result)


def _splits(job: Job) -> Iterator[tuple[str, Split]]:
    """The evaluation split, then the extra ones."""
    if job.evaluated is not None:
        yield job.recipe.data.evaluate or "evaluate", job.evaluated
    for name, source in job.recipe.data.extra.items():
        yield name, encode_split(job.recipe, job.task, job.base, source, labelled=False)
