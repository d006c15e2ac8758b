"""Encoded examples as tensors: one Batch, in three layouts that give the same result."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from task_formats import Encoded

Layout = Literal["separate", "shared", "packed"]
"""Rows of a batch: one view each, one example each (its prefix once), or a single row for all."""
NO_LABEL = -100
"""Class index of unlabelled examples, as `cross_entropy` ignores it."""


class Span(NamedTuple):
    """Adjacent columns of one row that belong to one example: its prefix, then endings."""

    row: int
    start: int
    """The first column."""
    prefix: int
    """Tokens of the prefix."""
    endings: tuple[int, ...]
    """Tokens of each ending."""

    @property
    def length(self) -> int:
        """Number of columns."""
        return self.prefix + sum(self.endings)

    @property
    def stop(self) -> int:
        """The column after the last."""
        return self.start + self.length

    @property
    def longest(self) -> int:
        """Tokens of the longest view, which a sliding window is compared with."""
        return self.prefix + max(self.endings, default=0)


class UpdateTotals(NamedTuple):
    """What an update's means are taken over: all its forward passes and processes together."""

    examples: int
    """Labelled examples."""
    views: int
    targets: int
    """Targets of the LM loss, each prefix counted once."""


class Batch(NamedTuple):
    """N examples, at most K views, R rows, T columns, M language-model targets.

    A token attends to an earlier column of its own example that is prefix or of its own ending.
    This one rule covers every layout.
    """

    tokens: Tensor
    """(R, T) long, padded on the right."""
    position_ids: Tensor
    """(R, T) long: a token's index in its own view."""
    example: Tensor
    """(R, T) long: the example a token belongs to; -1 for padding."""
    ending: Tensor
    """(R, T) long: the ending a token belongs to; -1 for a prefix and padding."""
    last_index: Tensor
    """(N, K) long: flat index into (R, T) of each view's last token; -1 where there is none."""
    lm_index: Tensor
    """(M,) long: flat index into (R, T) of the state that predicts a target."""
    lm_target: Tensor
    """(M,) long: the token to predict."""
    view: Tensor
    """(M,) long: flat index into (N, K) of the ending a target belongs to; -1 for a prefix."""
    token_weight: Tensor
    """(M,) float32: weights of the targets in the LM loss; they sum to 1 over the update."""
    example_weight: Tensor
    """(N,) float32: weights of the examples in the task loss; they sum to 1 over the update."""
    label: Tensor
    """(N,) long for classes and choices (-100 unlabelled) or float32 for scores (NaN)."""
    spans: tuple[Span, ...]
    """Where the examples are, on the host, so that attention need not ask the device."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copies a batch to a device; to a GPU from pinned memory, without waiting for the copy."""
    pin = device.type == "cuda"
    moved: dict[str, Any] = {
        name: (value.pin_memory() if pin else value).to(device, non_blocking=pin)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**moved)


def count_totals(examples: Sequence[Encoded]) -> UpdateTotals:
    """Counts the labelled examples, views and targets of a whole update."""
    return UpdateTotals(
        sum(example.label is not None for example in examples),
        sum(len(example.endings) for example in examples),
        sum(max(example.tokens - 1, 0) for example in examples),
    )


def collate(
    examples: Sequence[Encoded], layout: Layout, pad: int = 0, totals: UpdateTotals | None = None
) -> Batch:
    """Arranges examples as one Batch.

    The weights of the LM loss are those of the original code: the mean over a view's targets (every
    token after the start token), then the mean over views, wrong answers included. A prefix that
    is read once carries the weight of all its views. Without endings (pre-training) all targets
    weigh the same.

    Args:
        examples: N examples, not empty.
        layout: How they are arranged in rows. It changes no logit, loss or gradient.
        pad: The id of the pad token.
        totals: Counts of the whole update, where the examples are only a part of it.

    Returns:
        For "separate" R is the number of views, for "shared" N, and for "packed" 1.
    """
    totals = totals or count_totals(examples)
    rows = _arrange(examples, layout)
    placements = [placement for row in rows for placement in row]
    spans = tuple(placement.span for placement in placements)
    height, width = len(rows), max(row[-1].span.stop for row in rows)
    grid = np.full((4, height, width), -1, np.int64)
    # Padding is never read, but learned positions must exist for it: they stay below the longest
    # view's.
    grid[0], grid[1] = pad, np.minimum(np.arange(width), max(s.longest for s in spans) - 1)
    last_index = np.full((len(examples), max(len(e.endings) for e in examples)), -1, np.int64)
    targets = [
        _write_span(grid, last_index, examples[placement.example], placement, totals)
        for placement in placements
    ]
    lm_index, lm_target, view, weight = (
        np.concatenate(values) for values in zip(*targets, strict=True)
    )
    tokens, position_ids, example, ending = map(torch.from_numpy, grid)
    return Batch(
        tokens,
        position_ids,
        example,
        ending,
        torch.from_numpy(last_index),
        torch.from_numpy(lm_index),
        torch.from_numpy(lm_target),
        torch.from_numpy(view),
        torch.from_numpy(weight.astype(np.float32)),
        _example_weights(examples, totals),
        _labels(examples),
        spans,
    )


class _Placement(NamedTuple):
    """A span, and which views of which example it holds."""

    span: Span
    example: int
    views: range


def _arrange(examples: Sequence[Encoded], layout: Layout) -> list[list[_Placement]]:
    """The spans of every row: a row per view, a row per example, or one row for all."""
    rows: list[list[_Placement]] = []
    for n, example in enumerate(examples):
        count = len(example.endings)
        split = layout == "separate" and count > 1
        groups = [range(k, k + 1) for k in range(count)] if split else [range(count)]
        for views in groups:
            if layout != "packed" or not rows:
                rows.append([])
            start = rows[-1][-1].span.stop if rows[-1] else 0
            lengths = tuple(len(example.endings[k]) for k in views)
            span = Span(len(rows) - 1, start, len(example.prefix), lengths)
            rows[-1].append(_Placement(span, n, views))
    return rows


_Targets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""lm_index, lm_target, view and token_weight of a span's targets, (m,) each."""


def _write_span(
    grid: np.ndarray,
    last_index: np.ndarray,
    example: Encoded,
    placement: _Placement,
    totals: UpdateTotals,
) -> _Targets:
    """Writes a span into the (4, R, T) grid and (N, K) `last_index`; returns its targets."""
    span, n, views = placement
    tokens, position_ids, owner, ending = (grid[k, span.row] for k in range(4))
    prefix_stop = span.start + span.prefix
    tokens[span.start : prefix_stop] = example.prefix
    position_ids[span.start : prefix_stop] = np.arange(span.prefix)
    owner[span.start : span.stop] = n
    row_offset = span.row * grid.shape[2]
    in_prefix = max(span.prefix - 1, 0)
    index = [np.arange(span.start, prefix_stop - 1)]
    view = [np.full(in_prefix, -1, np.int64)]
    weight = [np.full(in_prefix, _prefix_weight(example, views, totals))]
    # An ending's first token is predicted from the end of the prefix. Without a prefix nothing
    # predicts it.
    skip = 0 if span.prefix else 1
    start = prefix_stop
    for k, length in zip(views, span.endings, strict=True):
        columns = np.arange(start, start + length)
        tokens[columns] = example.endings[k]
        position_ids[columns] = span.prefix + np.arange(length)
        ending[columns] = k
        start += length
        last_index[n, k] = row_offset + start - 1
        index.append(np.concatenate([[prefix_stop - 1], columns[:-1]])[skip:])
        view.append(np.full(length - skip, n * last_index.shape[1] + k, np.int64))
        weight.append(np.full(length - skip, _ending_weight(example, k, totals)))
    target = np.concatenate([example.prefix[1:]] + [example.endings[k][skip:] for k in views])
    return (
        row_offset + np.concatenate(index).astype(np.int64),
        target.astype(np.int64),
        np.concatenate(view),
        np.concatenate(weight),
    )


def _ending_weight(example: Encoded, k: int, totals: UpdateTotals) -> float:
    """The mean over the targets of view k, then the mean over the update's views."""
    targets = len(example.prefix) + len(example.endings[k]) - 1
    return 1 / (max(targets, 1) * totals.views)


def _prefix_weight(example: Encoded, views: range, totals: UpdateTotals) -> float:
    if not example.endings:
        return 1 / max(totals.targets, 1)
    return sum(_ending_weight(example, k, totals) for k in views)


def _example_weights(examples: Sequence[Encoded], totals: UpdateTotals) -> Tensor:
    weight = 1 / max(totals.examples, 1)
    return torch.tensor([0.0 if e.label is None else weight for e in examples])


def _labels(examples: Sequence[Encoded]) -> Tensor:
    """Long where every label is an index, float32 where one is a score."""
    labels = [example.label for example in examples]
    if any(isinstance(label, float) for label in labels):
        return torch.tensor([float("nan") if label is None else label for label in labels])
    return torch.tensor([NO_LABEL if label is None else int(label) for label in labels])
