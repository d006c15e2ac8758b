"""Estimates what a fine-tuning run costs: memory, tokens, and time from a short trial."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.distributed.setup import choose_precision, create_accelerator, deterministic_kernels
from finetune.models.quantization import count_parameters
from finetune.recipe.loading import resolve_paths
from finetune.recipe.schema import Recipe
from finetune.training.events import Started
from finetune.training.finetuning import prepare_finetuning
from finetune.training.job import TrainingJob
from finetune.training.loop import Step, run_updates
from task_formats import Task


class MemoryEstimate(NamedTuple):
    """Memory of a run in bytes."""

    weights: int
    gradients: int
    optimizer: int
    """Its moments."""
    activations: int | None
    """What the trial needed besides, at its highest; None where the system does not tell."""


class TokenCounts(NamedTuple):
    """Tokens of the training examples; a prefix that views share counts once."""

    per_epoch: int
    mean: float
    longest: int
    """Of one view."""
    truncated_examples: int


class Trial(NamedTuple):
    """Updates that were made for the estimate; the first one, which is slower, is not counted."""

    updates: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Speed of training."""
        return self.tokens / self.seconds


class Estimate(NamedTuple):
    """What a run costs, on one process and without evaluation."""

    started: Started
    """The run as it would start."""
    parameters: int
    memory: MemoryEstimate
    tokens: TokenCounts
    updates_per_epoch: int
    epochs: float
    trial: Trial

    @property
    def seconds_per_epoch(self) -> float:
        """Time of one epoch of updates."""
        return self.tokens.per_epoch / self.trial.tokens_per_second


def estimate(
    recipe: Recipe, *, task: Task | None = None, device: str | None = None, seconds: float = 10
) -> Estimate:
    """Prepares a run and makes updates for some seconds; no run folder is written.

    Args:
        recipe: Task, data, base and training settings.
        task: Replaces the recipe's task, for tasks defined in Python.
        device: cpu, cuda or the like. [default: the best available]
        seconds: Length of the trial. At least two updates are made, if the run has as many.
    """
    recipe = resolve_paths(recipe, Path.cwd())
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    with deterministic_kernels(recipe.train.deterministic):
        job = prepare_finetuning(recipe, recipe.task.resolve(task), accelerator)
        weights = _count_bytes(job.model.parameters())
        gradients = _count_bytes(p for p in job.model.parameters() if p.requires_grad)
        start_peak(accelerator.device)
        before = used_memory(accelerator.device)
        trial = run_trial(job, seconds)
        peak = peak_memory(accelerator.device)
    activations = None
    if before is not None and peak is not None:
        activations = max(0, peak - before - gradients - _optimizer_bytes(job))
    arrays, lengths = job.examples.arrays, job.lengths
    return Estimate(
        job.started(0),
        count_parameters(job.model),
        MemoryEstimate(weights, gradients, _optimizer_bytes(job), activations),
        TokenCounts(
            int(lengths.tokens.sum()),
            float(lengths.tokens.mean()),
            int(lengths.longest.max()),
            int(np.count_nonzero(arrays.truncated_tokens)),
        ),
        job.sampler.updates_per_epoch,
        job.sampler.epochs,
        trial,
    )


def run_trial(job: TrainingJob, seconds: float) -> Trial:
    """Makes updates of a prepared run until the time is over."""
    updates = range(1, job.sampler.updates + 1)
    steps = run_updates(
        job.model, job.optimizer, updates, job.make_microbatches, job.settings, job.accelerator
    )
    done: list[Step] = []
    ended = [time.perf_counter()]
    for step in steps:
        float(step.losses.total)  # Waits for the device.
        done.append(step)
        ended.append(time.perf_counter())
        if ended[-1] - ended[0] >= seconds and len(done) > 1:
            break
    first = 1 if len(done) > 1 else 0
    tokens = sum(step.tokens for step in done[first:])
    return Trial(len(done) - first, tokens, ended[-1] - ended[first])


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_bytes(job: TrainingJob) -> int:
    """Bytes of the moments, after at least one update."""
    states = job.optimizer.state.values()
    values = (value for state in states for value in state.values())
    return _count_bytes(value for value in values if isinstance(value, Tensor) and value.dim())


def start_peak(device: torch.device) -> None:
    """Forgets the highest memory use so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR_PEAK.exists():
        _CLEAR_PEAK.write_text("5", encoding="utf-8")


def used_memory(device: torch.device | str) -> int | None:
    """Bytes in use now, of a GPU or of this process; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _process_memory("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since `start_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_memory("VmHWM")


_CLEAR_PEAK = Path("/proc/self/clear_refs")


def _process_memory(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():  # Not Linux.
        return None
    lines = dict(
        line.split(":", 1)
        for line in status.read_text(encoding="utf-8").splitlines()
        if ":" in line
    )
    return int(lines[name].split()[0]) * 1024 if name in lines else None
