"""Measures the gradient noise scale of saved weights, which stay as they are."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetune.batching.sampler import EpochSampler
from finetune.checkpointing.checkpoint import load_checkpoint, restore_state
from finetune.checkpointing.run_folder import CHECKPOINTS
from finetune.distributed.fsdp import total_norm
from finetune.training.job import TrainingJob
from finetune.training.loop import MicroBatches, compute_gradient
from finetune.training.noise_scale import GradientMoments, estimate_moments
from task_formats import UsageError

GROUPS = 4
"""Groups of a batch. With more of them the estimates hardly vary less."""


class MeasuredBatch(NamedTuple):
    """What one batch tells."""

    moments: GradientMoments
    loss: float
    """The training loss, with dropout."""


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run, the earliest first."""
    return sorted((folder / CHECKPOINTS).glob("update-" + 8 * "[0-9]"))


def restore_weights(job: TrainingJob, path: Path) -> int:
    """Loads the weights of a checkpoint into the job's model; returns its update.

    Raises:
        UsageError: It is damaged, or holds the weights of another model.
    """
    checkpoint = load_checkpoint(path)
    try:
        restore_state(job.model, job.optimizer, checkpoint.tensors)
    except (ValueError, KeyError) as error:
        what = f"this checkpoint does not fit the run: {error}"
        raise UsageError(what, where=str(path)) from error
    return int(checkpoint.metadata["progress"]["update"])


def measure_batches(
    job: TrainingJob, batches: int, batch_size: int | None = None, seed: int = 0
) -> Iterator[MeasuredBatch]:
    """Yields the gradient moments of batches of training examples; the weights do not change.

    The loss is that of training, with its dropout. The examples are drawn without replacement,
    epoch by epoch, and each batch is cut into groups at random.

    Args:
        job: A prepared run of one process, with the weights to be measured.
        batches: Number of batches.
        batch_size: Examples in a batch, at least 2; by default as many as in the run's updates.
        seed: Of the examples and of dropout.

    Raises:
        UsageError: There are fewer training examples than in one batch, or several processes.
    """
    if job.accelerator.num_processes > 1:
        what = "saved weights are measured by one process"
        raise UsageError(what, cure="Start the command without a launcher.")
    rows = len(job.examples)
    batch_size = batch_size or max(2, min(job.sampler.batch_size, rows))
    if batch_size > rows:
        what = f"a batch of {batch_size} is larger than the {rows} training examples"
        raise UsageError(what, cure="Lower --batch-size.")
    epochs = -(-batches // (rows // batch_size))
    sampler = EpochSampler(rows, batch_size, epochs, seed, drop_incomplete=True)
    settings = job.settings._replace(noise_scale=True, seed=seed)
    measured = replace(job, settings=settings)
    parameters = [parameter for parameter in job.model.parameters() if parameter.requires_grad]

    def make_microbatches(number: int, max_tokens: int | None) -> MicroBatches:
        groups = np.array_split(sampler.indices(number), min(GROUPS, batch_size))
        return measured.collate_groups(groups, max_tokens)

    job.model.train()
    max_tokens = None
    for number in range(1, batches + 1):
        found = compute_gradient(
            job.model, parameters, number, make_microbatches, max_tokens, settings, job.accelerator
        )
        max_tokens = found.max_tokens
        assert found.group_norms is not None
        square, sizes = found.group_norms
        norm = total_norm([p.grad for p in parameters if p.grad is not None])
        moments = estimate_moments(float(square), float(norm) ** 2, sizes)
        yield MeasuredBatch(moments, float(found.losses.total))
    job.model.zero_grad(set_to_none=True)
