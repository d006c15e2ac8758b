"""Scores over all rows, each counted once however many processes share the work."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from finetune.batching.collate import Layout, collate, to_device
from finetune.batching.sampler import batch_by_tokens
from finetune.data.token_store import ExampleLengths, compute_lengths
from finetune.distributed.collectives import all_reduce_max
from finetune.distributed.fsdp import inference_context, is_sharded
from finetune.distributed.memory import catch_out_of_memory
from finetune.distributed.rehearsal import rehearse
from finetune.evaluation.metrics import score
from finetune.models.losses import task_loss
from task_formats import Encoded, Prediction, Task

WINDOW = 4096
"""Rows that are sorted by length together."""


class BatchConfig(NamedTuple):
    """How batches are made for a reader: layout, pad token, and tokens per forward pass."""

    layout: Layout
    pad_id: int
    max_tokens_per_forward: int


class EvaluationResult(NamedTuple):
    """Scores by metric, and what was predicted for every row, in order."""

    scores: dict[str, float]
    predictions: list[Prediction]


RowLogits = list[tuple[int, np.ndarray]]
"""What one forward pass found on this process: an index and (L,) logits per row."""


def compute_logits(
    model: nn.Module,
    examples: Sequence[Encoded],
    batch_config: BatchConfig,
    accelerator: Accelerator,
) -> Iterator[RowLogits]:
    """This process's share of all rows, a forward pass at a time, in order of length.

    A stream of rows is read through the same windows, so that evaluating a file and predicting on
    it make the same forward passes and the same numbers. Every process yields as many rounds, the
    last of them perhaps empty, so that whoever consumes them can agree with its peers in between.
    """
    sizes = compute_lengths(examples)
    read = partial(_logits, model, examples, batch_config, accelerator)
    if is_sharded(model) and len(examples):
        groups = _cut_within(read, model, sizes, batch_config, accelerator)
    else:
        groups = _cut(sizes, batch_config)
    rank, processes = accelerator.process_index, accelerator.num_processes
    for at in range(0, len(groups), processes):
        mine = groups[at + rank] if at + rank < len(groups) else np.arange(0)
        if is_sharded(model):
            # A pass is one of all processes, also of those that have nothing to read.
            found = [*zip(mine.tolist(), read(mine if len(mine) else groups[0][:1]), strict=False)]
        else:
            found, batch_config = compute_within_memory(read, mine, sizes, batch_config)
        yield found


def _cut(sizes: ExampleLengths, batch_config: BatchConfig) -> list[np.ndarray]:
    """The rows of every forward pass of all processes: the same, whoever asks."""
    rows = np.arange(len(sizes.tokens))
    windows = np.split(rows, range(WINDOW, len(rows), WINDOW))
    return [
        part
        for window in windows
        for part in batch_by_tokens(
            window, sizes, batch_config.layout, batch_config.max_tokens_per_forward
        )
    ]


def _cut_within(
    read: Callable[[np.ndarray], np.ndarray],
    model: nn.Module,
    sizes: ExampleLengths,
    batch_config: BatchConfig,
    accelerator: Accelerator,
) -> list[np.ndarray]:
    """The rows of every forward pass, for the largest of which every process has memory.

    A pass of shards is one of all processes, and nobody can leave it alone: so each rehearses the
    largest of all by itself, and all halve the budget where one of them lacks memory.
    """
    while True:
        groups = _cut(sizes, batch_config)
        largest = max(groups, key=lambda rows: int(sizes.tokens[rows].sum()))
        with rehearse(model, gradients=False):
            _, lacks = catch_out_of_memory(partial(read, largest), len(largest) > 1)
        if not all_reduce_max([lacks], accelerator)[0]:
            return groups
        batch_config = _halve(batch_config, int(sizes.tokens[largest].sum()))


def _halve(batch_config: BatchConfig, tokens: int) -> BatchConfig:
    """Half of what did not fit, where that is less than what may be tried."""
    return batch_config._replace(
        max_tokens_per_forward=min(tokens, batch_config.max_tokens_per_forward) // 2
    )


def compute_within_memory(
    read: Callable[[np.ndarray], np.ndarray],
    indices: np.ndarray,
    sizes: ExampleLengths,
    batch_config: BatchConfig,
) -> tuple[RowLogits, BatchConfig]:
    """What is read of the indexed rows; out of memory, with half the budget, which then stays.

    `read` gives (n, L) numbers of n rows.
    """
    while True:
        parts = batch_by_tokens(
            indices, sizes, batch_config.layout, batch_config.max_tokens_per_forward
        )
        found, _ = catch_out_of_memory(partial(_read_all, read, parts), len(parts) < len(indices))
        if found is not None:
            return found, batch_config
        batch_config = _halve(batch_config, max(int(sizes.tokens[part].sum()) for part in parts))


def _read_all(read: Callable[[np.ndarray], np.ndarray], parts: Sequence[np.ndarray]) -> RowLogits:
    return [pair for part in parts for pair in zip(part.tolist(), read(part), strict=True)]


def _logits(
    model: nn.Module,
    examples: Sequence[Encoded],
    batch_config: BatchConfig,
    accelerator: Accelerator,
    indices: np.ndarray,
) -> np.ndarray:
    """(N, L) float32 logits of the indexed rows; without dropout, whatever mode the model is in."""
    batch = collate([examples[n] for n in indices], batch_config.layout, batch_config.pad_id)
    was_training = model.training
    model.eval()
    try:
        with inference_context(model), accelerator.autocast():
            logits = model(to_device(batch, accelerator.device)).logits.float().cpu().numpy()
    finally:
        model.train(was_training)
    return cast(np.ndarray, logits)


def evaluate(
    rounds: Iterable[RowLogits],
    examples: Sequence[Encoded],
    task: Task,
    accelerator: Accelerator,
) -> EvaluationResult:
    """The task's metrics and the mean task loss over labelled examples."""
    logits = gather_logits(rounds, len(examples), accelerator)
    predictions = [
        task.labels.decode(example.id, row[~np.isneginf(row)].tolist())
        for example, row in zip(examples, logits, strict=True)
    ]
    labels = [example.label for example in examples]
    known = [n for n, label in enumerate(labels) if label is not None]
    gold = [task.labels.name(labels[n]) for n in known]  # type: ignore[arg-type]
    predicted = [predictions[n].label for n in known]
    scores = score(task.metrics, predicted, gold, task.positive_class)
    loss = task_loss(torch.from_numpy(logits[known]), torch.tensor([labels[n] for n in known]))
    return EvaluationResult({**scores, "loss": float(loss.mean())}, predictions)


def gather_logits(rounds: Iterable[RowLogits], rows: int, accelerator: Accelerator) -> np.ndarray:
    """(N, L) logits of all processes in the rows' order; -inf where a row has fewer choices.

    A row that is missing or there twice is an error, never a silently wrong score.
    """
    found = list(chain.from_iterable(rounds))
    if accelerator.num_processes > 1:
        found = gather_object(found)
    if sorted(index for index, _ in found) != list(range(rows)):
        raise RuntimeError(f"{len(found)} results for {rows} rows")
    table = np.full((rows, max(len(row) for _, row in found)), -np.inf, np.float32)
    for index, row in found:
        table[index, : len(row)] = row
    return table
