"""The training loop: a generator of steps, written once for every job."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import AdamW

from finetune.batch import Batch
from finetune.losses import Losses, objective
from finetune.optimizer import pace


class Passes(NamedTuple):
    """One update: its forward passes on this process, and what all processes read together."""

    batches: Sequence[Batch]
    examples: int
    tokens: int
    """With every prefix counted once, so that layouts and processes make no difference."""


Forwards = Callable[[int, int | None], Passes]
"""The passes of an update, given its number and a budget of tokens for each of them."""


class Settings(NamedTuple):
    """What an update needs to know besides its batches."""

    rate: Callable[[int], float]
    """The learning rate of update 1, 2, ..."""
    epsilon: float = 1e-8
    lm_coefficient: float = 0.5
    max_grad_norm: float = 1.0
    seed: int = 0
    budget: int | None = None
    """Most tokens in a forward pass, to begin with."""


class Step(NamedTuple):
    """One update, done. Its tensors stay on the device; whoever reads one waits for it."""

    number: int
    losses: Losses
    grad_norm: Tensor
    """Global norm before clipping."""
    refused: Tensor
    """1 where a loss or gradient was not finite and the weights were left alone, else 0."""
    learning_rate: float
    examples: int
    """Of all processes, as are the tokens."""
    tokens: int
    seconds: float
    budget: int | None


def optimize(
    model: nn.Module,
    optimizer: AdamW,
    updates: Iterable[int],
    forwards: Forwards,
    settings: Settings,
    accelerator: Accelerator,
) -> Iterator[Step]:
    """Yields a Step per update, each with the exact gradient of its whole batch.

    Dropout's random numbers are a function of (seed, update, process): nothing needs to be
    remembered for a resume. Out of memory, the budget halves and the update is made again.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    budget = settings.budget
    model.train()
    for number in updates:
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        losses, passes, budget = _accumulate(model, forwards, number, budget, settings, accelerator)
        norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm, foreach=True)
        refused = (~(norm.isfinite() & losses.total.isfinite())).float()
        rate = settings.rate(number)
        pace(optimizer, number, rate, settings.epsilon)
        # The fused kernel leaves weights and moments alone where this flag is 1, without asking
        # the host.
        optimizer.found_inf = refused  # type: ignore[attr-defined]
        optimizer.step()
        seconds = time.perf_counter() - began
        read = (passes.examples, passes.tokens)
        yield Step(number, losses, norm, refused, rate, *read, seconds, budget)


def _accumulate(
    model: nn.Module,
    forwards: Forwards,
    number: int,
    budget: int | None,
    settings: Settings,
    accelerator: Accelerator,
) -> tuple[Losses, Passes, int | None]:
    """Gradients of one update; with less memory than needed, in smaller and smaller pieces."""
    while True:
        passes = forwards(number, budget)
        batches = passes.batches
        try:
            reseed(settings.seed, number, accelerator.process_index)
            return _backward(model, batches, settings, accelerator), passes, budget
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error) or accelerator.num_processes > 1:
                raise
            if len(batches) == sum(len(batch.last) for batch in batches):
                raise  # Every example already goes alone.
            budget = max(map(tokens_read, batches)) // 2
            model.zero_grad(set_to_none=True)


def _backward(
    model: nn.Module, batches: Sequence[Batch], settings: Settings, accelerator: Accelerator
) -> Losses:
    """Runs all forward passes of an update; gradients are exchanged once, with the last."""
    found: list[Losses] = []
    for k, batch in enumerate(batches):
        last = k + 1 == len(batches)
        with nullcontext() if last else accelerator.no_sync(model):
            here = send_to_device(batch, accelerator.device, non_blocking=True)
            with accelerator.autocast():
                outputs = model(here, lm=settings.lm_coefficient > 0)
            losses = objective(outputs, here, settings.lm_coefficient)
            # Data parallelism averages over processes; ours are parts of one sum.
            accelerator.backward(losses.total * accelerator.num_processes)
        found.append(Losses(*(part.detach() for part in losses)))
    sums = torch.stack([torch.stack(list(losses)) for losses in found]).sum(0)
    return Losses(*accelerator.reduce(sums, "sum").unbind())


def reseed(seed: int, update: int, process: int) -> None:
    """Makes every generator's state a function of the seed, the update and the process."""
    # numpy's seed sequence mixes the three well; torch's own seeding of one number does not.
    torch.manual_seed(int(np.random.SeedSequence([seed, update, process]).generate_state(1)[0]))


def tokens_read(batch: Batch) -> int:
    """Real tokens of a batch."""
    return sum(span.stop - span.start for span in batch.spans)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text
