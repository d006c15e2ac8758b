"""Logits and scores of a whole split, each row counted once however many processes share it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from finetune.batching.collate import collate, to_device
from finetune.batching.sampler import BatchConfig, batch_by_tokens
from finetune.data.token_store import ExampleLengths, compute_lengths
from finetune.distributed.fsdp import inference_context, is_sharded
from finetune.distributed.memory import is_out_of_memory
from finetune.evaluation.metrics import score_predictions
from finetune.evaluation.thresholds import tune_thresholds
from finetune.models.losses import TaskLossOptions, task_loss
from finetune.progress import Progress
from task_formats import Encoded, Prediction, Task

CHUNK_ROWS = 1024
"""Rows that are sorted by length together, and whose predictions are written together."""

RowLogits = list[tuple[int, np.ndarray]]
"""The result of one forward pass on this process: an index and (L,) logits per row, where L is K
choices, C classes or 1 score."""


class EvaluationResult(NamedTuple):
    """Scores of a split, and what they were computed from."""

    scores: dict[str, float]
    logits: np.ndarray
    """(N, L) float32; -inf where a row has fewer choices."""
    examples: Sequence[Encoded]
    task: Task

    @property
    def predictions(self) -> list[Prediction]:
        """What was predicted for every row, in order."""
        return list(decode_logits(self.logits, self.examples, self.task))


def compute_logits(
    model: nn.Module,
    examples: Sequence[Encoded],
    batch_config: BatchConfig,
    accelerator: Accelerator,
) -> Iterator[RowLogits]:
    """Yields the logits of this process's share of all rows, one forward pass at a time.

    Rows are sorted by length within chunks, the same chunks in which a stream of rows is
    predicted: evaluating a file and predicting on it give the same numbers. Every process yields
    equally often, so that processes can communicate between two passes. If memory runs out, the
    tokens per forward pass halve.

    Raises:
        RuntimeError: Memory ran out for a single row, or in a sharded model.
    """
    lengths = compute_lengths(examples)
    forward = partial(compute_pass, model, examples, batch_config, accelerator)
    passes = [
        rows
        for start in range(0, len(examples), CHUNK_ROWS)
        for rows in batch_by_tokens(
            np.arange(start, min(start + CHUNK_ROWS, len(examples))),
            lengths,
            batch_config.layout,
            batch_config.max_tokens_per_forward,
        )
    ]
    rank, processes = accelerator.process_index, accelerator.num_processes
    for start in range(0, len(passes), processes):
        own = passes[start + rank] if start + rank < len(passes) else np.arange(0)
        if is_sharded(model):
            # All processes take part in every pass, also those that have no rows left.
            logits = forward(own if len(own) else passes[0][:1])
            yield [*zip(own.tolist(), logits, strict=False)]
        else:
            result, batch_config = compute_with_halving(forward, own, lengths, batch_config)
            yield result


def show_evaluation(
    passes: Iterable[RowLogits], name: str, rows: int, accelerator: Accelerator
) -> Iterator[RowLogits]:
    """Yields the forward passes of a split, and counts the rows of all processes as progress."""
    with Progress(f"evaluating {name}", rows) as progress:
        yield from progress.count(passes, lambda found: len(found) * accelerator.num_processes)


def compute_with_halving(
    forward: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    lengths: ExampleLengths,
    batch_config: BatchConfig,
) -> tuple[RowLogits, BatchConfig]:
    """Computes rows in passes of limited size; halves the limit whenever memory runs out.

    `forward` maps (N,) row indices to (N, L) numbers. Returns the numbers of every row, and the
    configuration with the limit that fitted.
    """
    while True:
        limit = batch_config.max_tokens_per_forward
        passes = batch_by_tokens(rows, lengths, batch_config.layout, limit)
        try:
            return _forward_all(forward, passes), batch_config
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or len(passes) >= len(rows):
                raise
        # Only here has the error, with the tensors that it holds, been freed.
        largest = max(int(lengths.tokens[rows].sum()) for rows in passes)
        batch_config = batch_config._replace(max_tokens_per_forward=min(largest, limit) // 2)


def _forward_all(
    forward: Callable[[np.ndarray], np.ndarray], passes: Sequence[np.ndarray]
) -> RowLogits:
    return [pair for rows in passes for pair in zip(rows.tolist(), forward(rows), strict=True)]


def compute_pass(
    model: nn.Module,
    examples: Sequence[Encoded],
    batch_config: BatchConfig,
    accelerator: Accelerator,
    rows: np.ndarray,
) -> np.ndarray:
    """Returns the (N, L) float32 logits of the indexed rows: one pass, without dropout."""
    batch = collate(
        [examples[n] for n in rows],
        batch_config.layout,
        batch_config.pad_id,
        rounded=accelerator.device.type == "cpu",
    )
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with inference_context(model), accelerator.autocast():
            outputs = model(to_device(batch, accelerator.device))
        logits: np.ndarray = outputs.logits.float().cpu().numpy()
    finally:
        if was_training:
            model.train()
    return logits


def gather_logits(passes: Iterable[RowLogits], rows: int, accelerator: Accelerator) -> np.ndarray:
    """Collects the logits of all processes.

    Returns:
        (N, L) float32 in the order of the rows; -inf where a row has fewer choices. An
        infinite logit becomes NaN.

    Raises:
        RuntimeError: A row is missing or occurs twice, so scores would be wrong.
    """
    found = list(chain.from_iterable(passes))
    if accelerator.num_processes > 1:
        found = gather_object(found)
    if sorted(index for index, _ in found) != list(range(rows)):
        raise RuntimeError(f"{len(found)} results for {rows} rows")
    table = np.full((rows, max(len(row) for _, row in found)), -np.inf, np.float32)
    for index, row in found:
        table[index, : len(row)] = np.where(np.isposinf(row), np.nan, row)
    return table


def evaluate(
    passes: Iterable[RowLogits],
    examples: Sequence[Encoded],
    task: Task,
    accelerator: Accelerator,
    *,
    tune: bool = False,
) -> EvaluationResult:
    """Computes the task's metrics and the mean task loss over all labelled rows of a split.

    Args:
        passes: Logits of this process's rows, from `compute_logits`.
        examples: Encoded rows of the whole split.
        task: Gives the metrics and the positive class.
        accelerator: Gathers the logits of all processes.
        tune: First choose the thresholds of several labels at once on these rows.

    Returns:
        Metric name to value, with "loss" in nats per example, and the predictions of all rows. If
        any logit is not finite, every score is NaN.

    Raises:
        UsageError: No row has a label.
    """
    logits = gather_logits(passes, len(examples), accelerator)
    labels = [example.label for example in examples]
    known = [n for n, label in enumerate(labels) if label is not None]
    if known and np.isnan(logits).any():
        return EvaluationResult(
            dict.fromkeys((*task.metrics, "loss"), np.nan), logits, examples, task
        )
    task = tune_thresholds(task, logits, labels) if tune and known else task
    gold = [labels[n] for n in known]
    # One at a time: a prediction over many classes is large.
    predictions = zip(decode_logits(logits, examples, task), labels, strict=True)
    scores = score_predictions(task, (p for p, label in predictions if label is not None), gold)
    options = TaskLossOptions(is_distribution=task.labels.kind == "classes")
    loss = task_loss(torch.from_numpy(logits[known]), torch.tensor(gold), options)
    return EvaluationResult({**scores, "loss": float(loss.mean())}, logits, examples, task)


def decode_logits(
    logits: np.ndarray, examples: Sequence[Encoded], task: Task
) -> Iterator[Prediction]:
    """Yields the predictions of N rows with (N, L) logits; absent choices are -inf."""
    for example, row in zip(examples, logits, strict=True):
        yield task.labels.decode(example.id, row[~np.isneginf(row)].tolist())
