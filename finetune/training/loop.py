"""The training loop: a generator of steps, shared by fine-tuning and pre-training."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.batching.collate import Batch, to_device
from finetune.distributed.collectives import all_reduce_gradients, all_reduce_max
from finetune.distributed.fsdp import clip_gradients, is_sharded, reshard
from finetune.distributed.memory import is_out_of_memory
from finetune.models.losses import Losses, TaskLossOptions, objective
from finetune.recipe.schema import OptimizerName
from finetune.training.group_norms import GradientGroups, GroupNorms, GroupNormSum
from finetune.training.noise_scale import NoiseScale
from finetune.training.optimizer import take_step


class MicroBatches(NamedTuple):
    """The forward passes of one update on this process; sizes are those of the whole update."""

    batches: Sequence[Batch]
    examples: int
    tokens: int
    """Tokens with every prefix counted once, so that layouts and processes do not change it."""
    groups: GradientGroups | None = None
    """None if the noise scale is not measured, or if there are fewer than two examples."""


NO_LIMIT = 2**62

MakeMicroBatches = Callable[[int, int | None], MicroBatches]
"""From an update's number (1, 2, ...) and a limit of tokens per forward pass to its passes."""


class LoopSettings(NamedTuple):
    """What an update needs besides its batches."""

    learning_rate: Callable[[int], float]  # of update 1, 2, ...
    epsilon: float = 1e-8
    lm_coefficient: float = 0.5
    """λ of task loss + λ · LM loss (GPT-1, section 3.2)."""
    max_grad_norm: float = 1.0
    seed: int = 0
    max_tokens_per_forward: int | None = None
    task_loss: TaskLossOptions = TaskLossOptions()
    """Class weights and label smoothing."""
    noise_scale: bool = False
    """Measure the gradient noise scale."""
    optimizer: OptimizerName = "adamw"


class Step(NamedTuple):
    """One finished update. Its tensors stay on the device; reading one waits for the device."""

    number: int
    losses: Losses
    grad_norm: Tensor  # before clipping
    nonfinite: Tensor
    """1 where a loss or gradient was not finite and the weights were left unchanged, else 0."""
    learning_rate: float
    examples: int
    """Summed over all processes, like `tokens`."""
    tokens: int
    seconds: float
    max_tokens_per_forward: int | None
    group_norms: GroupNorms | None = None
    noise_scale: NoiseScale | None = None
    """The running estimate, from all updates whose norms have been read from the device."""


def run_updates(
    model: nn.Module,
    optimizer: Optimizer,
    updates: Iterable[int],
    make_microbatches: MakeMicroBatches,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> Iterator[Step]:
    """Trains; yields a Step per update, each with the exact gradient of its whole batch.

    Dropout's random numbers are a function of (seed, update, process), so resuming restores no
    generator. If memory runs out on any process, all halve the tokens per forward pass and repeat
    the update; apart from dropout and rounding the gradient stays the same.

    Raises:
        RuntimeError, MemoryError: Memory ran out and a pass cannot be made smaller: it holds one
            example, or the model is sharded. A note says what to do.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    max_tokens = settings.max_tokens_per_forward
    model.train()
    for number in updates:
        started = time.perf_counter()
        losses, group_norms, microbatches, max_tokens = compute_gradient(
            model, parameters, number, make_microbatches, max_tokens, settings, accelerator
        )
        grad_norm = clip_gradients(parameters, settings.max_grad_norm)
        # With offloaded weights the norm is on the CPU, where the optimizer runs.
        is_finite = grad_norm.isfinite() & losses.total.isfinite().to(grad_norm.device)
        nonfinite = (~is_finite).float()
        learning_rate = settings.learning_rate(number)
        name, epsilon = settings.optimizer, settings.epsilon
        take_step(optimizer, name, number, learning_rate, epsilon, nonfinite)
        seconds = time.perf_counter() - started
        size = (microbatches.examples, microbatches.tokens)
        yield Step(
            number,
            losses,
            grad_norm,
            nonfinite,
            learning_rate,
            *size,
            seconds,
            max_tokens,
            group_norms,
        )


class UpdateGradient(NamedTuple):
    """What `compute_gradient` returns; the gradient itself is in the parameters."""

    losses: Losses
    group_norms: GroupNorms | None
    microbatches: MicroBatches
    max_tokens: int | None
    """After any halving because memory ran out."""


def compute_gradient(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    number: int,
    make_microbatches: MakeMicroBatches,
    max_tokens: int | None,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> UpdateGradient:
    """Computes the gradient of an update over all processes, before clipping.

    Arguments and errors are those of `run_updates`; `max_tokens` limits the tokens per pass.
    """
    while True:
        reshard(model)  # An evaluation leaves the outermost FSDP weights gathered.
        model.zero_grad(set_to_none=True)
        microbatches = make_microbatches(number, max_tokens)
        seed_update(settings.seed, number, accelerator.process_index)
        sums, limit = _accumulate_gradients(model, parameters, microbatches, settings, accelerator)
        failed, lowest = all_reduce_max([sums is None, -limit], accelerator)
        if sums is not None and not failed:
            break
        max_tokens = -lowest
    all_reduce_gradients(() if is_sharded(model) else parameters, accelerator)
    total, task, lm, *square = accelerator.reduce(sums, "sum").unbind()
    groups = microbatches.groups
    norms = GroupNorms(square[0], groups.sizes) if groups else None
    return UpdateGradient(Losses(total, task, lm), norms, microbatches, max_tokens)


def _accumulate_gradients(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    microbatches: MicroBatches,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> tuple[Tensor | None, int]:
    """Returns the (3,) losses, or None and a lower limit of tokens per pass if memory ran out.

    With groups it returns (4,) numbers, of which the last is the mean squared norm of the groups.
    """
    losses = [torch.zeros(3, device=accelerator.device)]
    groups, norms = microbatches.groups, GroupNormSum(parameters)
    # FSDP averages gradients over processes; ours are parts of one sum.
    scale = accelerator.num_processes if is_sharded(model) else 1
    try:
        on_device = (to_device(batch, accelerator.device) for batch in microbatches.batches)
        for number, batch in enumerate(on_device, 1):
            with accelerator.autocast():
                outputs = model(batch, lm=settings.lm_coefficient > 0)
            parts = objective(outputs, batch, settings.lm_coefficient, settings.task_loss)
            accelerator.backward(parts.total * scale)
            losses.append(torch.stack([part.detach() for part in parts]))
            if groups and number in groups.ends:
                index = groups.ends.index(number)
                norms.end_group(groups.shares[index], is_last=index + 1 == len(groups.ends))
    except (MemoryError, RuntimeError) as error:
        batches = microbatches.batches
        limit = max(map(count_tokens, batches)) // 2
        can_shrink = len(batches) < sum(len(batch.last_index) for batch in batches)
        if not (is_out_of_memory(error) and can_shrink):
            raise
        if is_sharded(model):
            advice = f"--resume --set train.tokens_per_forward={limit}"
            error.add_note(f"Sharded processes cannot repeat a pass. Resume with {advice}")
            raise
        return None, limit
    sums = torch.stack(losses).sum(0)
    if groups:
        # Each process of a sharded model has the norm of all shards; the sum counts it once.
        square = norms.square.to(sums) / scale
        sums = torch.cat([sums, square.reshape(1)])
    return sums, NO_LIMIT


def seed_update(seed: int, update: int, process: int) -> None:
    """Makes the state of every random generator a function of seed, update and process."""
    # NumPy's seed sequence mixes the three well; torch's seeding with one number does not.
    torch.manual_seed(int(np.random.SeedSequence([seed, update, process]).generate_state(1)[0]))


def count_tokens(batch: Batch) -> int:
    """Counts the tokens of a batch without padding."""
    return sum(span.stop - span.start for span in batch.spans)
