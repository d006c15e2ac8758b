"""The training loop: a generator of steps, written once for every job."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from finetune.batching.collate import Batch, to_device
from finetune.distributed.collectives import all_reduce_max
from finetune.distributed.fsdp import clip_gradients, is_sharded, reshard
from finetune.distributed.memory import catch_out_of_memory, is_out_of_memory
from finetune.distributed.rehearsal import rehearse
from finetune.models.losses import Losses, objective
from finetune.models.speedups.embedding_gradients import accumulate_in_place, clear_gradients
from finetune.training.optimizer import set_adamw_step


class MicroBatches(NamedTuple):
    """One update: its forward passes on this process, and what all processes read together."""

    batches: Sequence[Batch]
    examples: int
    tokens: int
    """With every prefix counted once, so that layouts and processes make no difference."""
    empty_batch: Callable[[], Batch] | None = None
    """A small batch that weighs nothing, for a process that has none or lacks memory."""


Forwards = Callable[[int, int | None], MicroBatches]
"""The passes of an update, given its number and a budget of tokens for each of them."""


class LoopSettings(NamedTuple):
    """What an update needs to know besides its batches."""

    learning_rate: Callable[[int], float]
    """The learning rate of update 1, 2, ..."""
    epsilon: float = 1e-8
    lm_coefficient: float = 0.5
    max_grad_norm: float = 1.0
    seed: int = 0
    max_tokens_per_forward: int | None = None
    """Most tokens in a forward pass, to begin with."""
    halts: Callable[[], bool] = bool
    """Asked before every pass: True ends the loop there, with the weights of the last update. A
    pass of shards is one of all processes, and there it gives all of them the same answer."""


class Step(NamedTuple):
    """One update, done. Its tensors stay on the device; whoever reads one waits for it."""

    number: int
    losses: Losses
    grad_norm: Tensor
    """Global norm before clipping."""
    skipped: Tensor
    """1 where a loss or gradient was not finite and the weights were left alone, else 0."""
    learning_rate: float
    examples: int
    """Of all processes, as are the tokens."""
    tokens: int
    seconds: float
    max_tokens_per_forward: int | None


def optimize(
    model: nn.Module,
    optimizer: AdamW,
    updates: Iterable[int],
    forwards: Forwards,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> Iterator[Step]:
    """Yields a Step per update, each with the exact gradient of its whole batch.

    Dropout's random numbers are a function of (seed, update, process): nothing needs to be
    remembered for a resume. Out of memory, the budget halves and the update is made again, unless
    other processes wait in the very pass that failed.
    Ends early, without a Step, where `settings.halts` says so.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    room = _Room(settings.max_tokens_per_forward)
    accumulate_in_place(model, accelerator.num_processes)
    model.train()
    for number in updates:
        began = time.perf_counter()
        reshard(model)
        clear_gradients(model)
        made = _accumulate(model, forwards, number, room, settings, accelerator)
        if made is None:
            return
        losses, passes = made
        norm = clip_gradients(parameters, settings.max_grad_norm)
        refused = (~(norm.isfinite() & losses.total.isfinite())).float()
        rate = settings.learning_rate(number)
        set_adamw_step(optimizer, number, rate, settings.epsilon)
        # The fused kernel leaves weights and moments alone where this flag is 1, without asking
        # the host.
        optimizer.found_inf = refused  # type: ignore[attr-defined]
        fresh = not optimizer.state
        optimizer.step()
        if fresh:
            room.proven = 0  # Moments take memory from now on: what fitted without them may not.
        seconds = time.perf_counter() - began
        read = (passes.examples, passes.tokens)
        yield Step(number, losses, norm, refused, rate, *read, seconds, room.budget)


_NO_LIMIT = 2**62


@dataclass
class _Room:
    """Tokens of a forward pass: how many may be tried, and how many have been seen to fit."""

    budget: int | None
    proven: int = 0


def _accumulate(
    model: nn.Module,
    forwards: Forwards,
    number: int,
    room: _Room,
    settings: LoopSettings,
    accelerator: Accelerator,
) -> tuple[Losses, MicroBatches] | None:
    """Gradients of one update, or None where it was left halfway.

    With less memory than needed they are made in smaller and smaller pieces: all processes agree
    whether one of them lacked memory, and make the same update again.
    """
    run = partial(_backward, model, settings, accelerator)
    while True:
        passes = forwards(number, room.budget)
        most = max(map(count_tokens, passes.batches), default=0)
        new = most > room.proven
        with _advising(passes, most):
            lacks = new and is_sharded(model) and _rehearse(run, model, passes)
            seed_update(settings.seed, number, accelerator.process_index)
            if is_sharded(model):
                found = _make_together(run, passes, lacks, accelerator)
            else:
                found, lacks = _make_apart(run, passes, new, accelerator.num_processes > 1)
        smaller = most // 2 if lacks else _NO_LIMIT
        left = found is None and not lacks
        one_left, one_lacks, less = all_reduce_max([left, lacks, -smaller], accelerator)
        if one_left:
            return None
        if found is not None and not one_lacks:
            room.proven = max(room.proven, most)
            return Losses(*accelerator.reduce(found.sum(0), "sum").unbind()), passes
        room.budget, room.proven = -less, 0
        clear_gradients(model)


def _make_apart(
    run: Callable[..., Tensor | None], passes: MicroBatches, new: bool, several: bool
) -> tuple[Tensor | None, bool]:
    """The passes of whole models: what each gives (None: some are missing); was memory lacking?

    An exchange of gradients cannot be broken off, and goes with the last pass. So where a pass is
    larger than any before, all are made without one, and it goes with an idle pass; as it does
    where passes before the last were left or lacked memory.
    """
    last = passes.batches[-1:] if several and not new else []
    own = passes.batches[: len(passes.batches) - len(last)]
    found, lacks = catch_out_of_memory(partial(run, own), _can_shrink(passes))
    final = None
    if last and found is not None:
        final = run(last, exchanged=True)
        found = None if final is None else torch.cat([found, final])
    if several and final is None:
        run([_idle(passes)], exchanged=True, heeds=False)
    return found, lacks


def _make_together(
    run: Callable[..., Tensor | None], passes: MicroBatches, lacks: bool, accelerator: Accelerator
) -> Tensor | None:
    """The passes of a model in shards: what each gives, or None where they were left halfway.

    None of them is made where one process lacks memory for its own.
    """
    (one_lacks,) = all_reduce_max([lacks], accelerator)
    return run([] if one_lacks else passes.batches, exchanged=True)


def _rehearse(run: Callable[..., Tensor | None], model: nn.Module, passes: MicroBatches) -> bool:
    """Whether this process lacks memory for its largest pass of a model in shards.

    All processes make each pass together, and whoever fails there cannot tell the others.
    """
    largest = [max(passes.batches, key=count_tokens)]
    with rehearse(model):
        return catch_out_of_memory(partial(run, largest, heeds=False), _can_shrink(passes))[1]


@contextmanager
def _advising(passes: MicroBatches, most: int) -> Iterator[None]:
    """An error for want of memory, which ends the run, also says what may fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) and _can_shrink(passes):
            error.add_note(
                f"A forward pass of {most} tokens did not fit. To make the same update in smaller "
                f"ones: --resume --set train.tokens_per_forward={most // 2}"
            )
        raise


def _can_shrink(passes: MicroBatches) -> bool:
    """Whether a pass has several examples: one alone is not cut."""
    return len(passes.batches) < sum(len(batch.last_index) for batch in passes.batches)


def _backward(
    model: nn.Module,
    settings: LoopSettings,
    accelerator: Accelerator,
    batches: Sequence[Batch],
    exchanged: bool = False,
    heeds: bool = True,
) -> Tensor | None:
    """Runs forward passes: (n, 3) losses of each. Gradients are exchanged with the last, if at all.

    Shards exchange theirs with every pass: whole gradients would not fit. None where the passes
    were left halfway, as one that `heeds` what `settings.halts` says may do.
    """
    found = [torch.zeros(0, 3, device=accelerator.device)]
    for k, batch in enumerate(batches):
        if heeds and settings.halts():
            return None
        waits = not is_sharded(model) and not (exchanged and k + 1 == len(batches))
        with accelerator.no_sync(model) if waits else nullcontext():
            here = to_device(batch, accelerator.device)
            with accelerator.autocast():
                outputs = model(here, lm=settings.lm_coefficient > 0)
            losses = objective(outputs, here, settings.lm_coefficient)
            # Data parallelism averages over processes; ours are parts of one sum.
            accelerator.backward(losses.total * accelerator.num_processes)
        found.append(torch.stack([part.detach() for part in losses])[None])
    return torch.cat(found)


def _idle(passes: MicroBatches) -> Batch:
    """A batch that weighs nothing: every process must take part in the exchange of gradients."""
    if passes.empty_batch is not None:
        return passes.empty_batch()
    batch = passes.batches[-1]
    return batch._replace(
        token_weight=batch.token_weight * 0, example_weight=batch.example_weight * 0
    )


def seed_update(seed: int, update: int, process: int) -> None:
    """Makes every generator's state a function of the seed, the update and the process."""
    # numpy's seed sequence mixes the three well; torch's own seeding of one number does not.
    torch.manual_seed(int(np.random.SeedSequence([seed, update, process]).generate_state(1)[0]))


def count_tokens(batch: Batch) -> int:
    """Real tokens of a batch."""
    return sum(span.stop - span.start for span in batch.spans)
