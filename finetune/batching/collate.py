"""Encoded examples as tensors: one Batch, filled in three ways that give the same result."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from task_formats import Encoded

Layout = Literal["separate", "shared", "packed"]
NO_LABEL = -100


class Span(NamedTuple):
    """Neighbouring columns of one row that belong to one example: its prefix, then its endings."""

    row: int
    start: int
    prefix: int
    endings: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The column after the last."""
        return self.start + self.prefix + sum(self.endings)

    @property
    def longest(self) -> int:
        """Tokens of the longest view: what a sliding window is compared with."""
        return self.prefix + max(self.endings, default=0)


class UpdateTotals(NamedTuple):
    """What an update's means are taken over, all its forward passes and processes together."""

    examples: int
    views: int
    targets: int


class Batch(NamedTuple):
    """N examples, at most K views, R rows, T columns, M language-model targets.

    A token sees an earlier column of its own example that is prefix or of its own ending:
    this one rule covers every layout.
    """

    tokens: Tensor
    """(R, T) long, padded on the right."""
    position_ids: Tensor
    """(R, T) long: how far into its own view a token stands, which is its position id."""
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
    """(M,) long: flat index into (N, K) of the ending a target is part of; -1 for a prefix."""
    token_weight: Tensor
    """(M,) float32: the target's share of the LM loss; they sum to 1 over the update."""
    example_weight: Tensor
    """(N,) float32: the example's share of the task loss; they sum to 1 over the update."""
    label: Tensor
    """(N,) long for classes and choices (-100 unlabelled) or float32 for scores (NaN)."""
    spans: tuple[Span, ...]
    """Where the examples stand, on the host: what attention needs without asking the device."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device.

    On its way to a GPU it lies in pinned memory: only from there does a copy run beside what the
    GPU computes, without anybody waiting for it.
    """
    pins = device.type == "cuda"
    moved: dict[str, Any] = {
        name: (part.pin_memory() if pins else part).to(device, non_blocking=pins)
        for name, part in batch._asdict().items()
        if isinstance(part, Tensor)
    }
    return batch._replace(**moved)


def count_totals(examples: Sequence[Encoded]) -> UpdateTotals:
    """Labelled examples, views and targets of a whole update."""
    return UpdateTotals(
        sum(example.label is not None for example in examples),
        sum(len(example.endings) for example in examples),
        sum(_targets(example) for example in examples),
    )


def collate(
    examples: Sequence[Encoded], layout: Layout, pad: int = 0, totals: UpdateTotals | None = None
) -> Batch:
    """The examples as one Batch in a layout; `totals` when they are only part of an update.

    LM weights are the original's: the mean over a view's targets (every token after S), then the
    mean over views, wrong answers included. Without endings (pre-training) every target weighs
    the same. A shared prefix carries the weight of all its views.
    """
    totals = totals or count_totals(examples)
    rows = _rows(examples, layout)
    spans = tuple(span for row in rows for span, _ in row)
    height, width = len(rows), max(row[-1][0].stop for row in rows)
    grid = np.full((4, height, width), -1, np.int64)
    # Padding is never read, but its position must exist: it stays below the longest view's.
    grid[0], grid[1] = pad, np.minimum(np.arange(width), max(s.longest for s in spans) - 1)
    last = np.full((len(examples), max(len(e.endings) for e in examples)), -1, np.int64)
    parts = [
        _place(grid, last, examples[n], n, span, views, totals)
        for row in rows
        for span, (n, views) in row
    ]
    source, target, view, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    tokens, place, example, ending = map(torch.from_numpy, grid)
    return Batch(
        tokens,
        place,
        example,
        ending,
        torch.from_numpy(last),
        torch.from_numpy(source),
        torch.from_numpy(target),
        torch.from_numpy(view),
        torch.from_numpy(weight.astype(np.float32)),
        _shares(examples, totals),
        _labels(examples),
        spans,
    )


class _Views(NamedTuple):
    """Which example stands in a span, and which of its views."""

    example: int
    endings: range


def _rows(examples: Sequence[Encoded], layout: Layout) -> list[list[tuple[Span, _Views]]]:
    """The spans of every row: a row per view, a row per example, or one row for all."""
    rows: list[list[tuple[Span, _Views]]] = []
    for n, example in enumerate(examples):
        count = len(example.endings)
        alone = layout == "separate" and count > 1
        groups = [range(k, k + 1) for k in range(count)] if alone else [range(count)]
        for group in groups:
            if layout != "packed" or not rows:
                rows.append([])
            start = rows[-1][-1][0].stop if rows[-1] else 0
            lengths = tuple(len(example.endings[k]) for k in group)
            span = Span(len(rows) - 1, start, len(example.prefix), lengths)
            rows[-1].append((span, _Views(n, group)))
    return rows


def _place(
    grid: np.ndarray,
    last: np.ndarray,
    example: Encoded,
    n: int,
    span: Span,
    views: range,
    totals: UpdateTotals,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Writes one span into the (4, R, T) grid; its targets: source, token, view, weight."""
    width = grid.shape[2]
    tokens, place, owner, ending = (grid[k, span.row] for k in range(4))
    cut = span.start + span.prefix
    tokens[span.start : cut] = example.prefix
    place[span.start : cut] = np.arange(span.prefix)
    owner[span.start : span.stop] = n
    offset = span.row * width
    sources = [np.arange(span.start, cut - 1)]
    shares = [np.full(max(span.prefix - 1, 0), _prefix_weight(example, views, totals))]
    marks = [np.full(max(span.prefix - 1, 0), -1, np.int64)]
    at = cut
    for k, length in zip(views, span.endings, strict=True):
        columns = np.arange(at, at + length)
        tokens[columns] = example.endings[k]
        place[columns] = span.prefix + np.arange(length)
        ending[columns] = k
        last[n, k] = offset + at + length - 1
        # The first token of an ending is predicted from the end of the prefix, if there is one.
        before = np.concatenate([[cut - 1], columns[:-1]])
        skip = 0 if span.prefix else 1
        sources.append(before[skip:])
        shares.append(np.full(length - skip, _ending_weight(example, k, totals)))
        marks.append(np.full(length - skip, n * last.shape[1] + k, np.int64))
        at += length
    targets = np.concatenate(
        [example.prefix[1:]] + [example.endings[k][0 if span.prefix else 1 :] for k in views]
    ).astype(np.int64)
    return (
        offset + np.concatenate(sources).astype(np.int64),
        targets,
        np.concatenate(marks),
        np.concatenate(shares),
    )


def _targets(example: Encoded) -> int:
    """Targets of all views of an example, the prefix counted once."""
    ends = sum(map(len, example.endings))
    return max(len(example.prefix) + ends - 1, 0)


def _ending_weight(example: Encoded, k: int, totals: UpdateTotals) -> float:
    """Mean over the targets of view k, then mean over the update's views."""
    targets = len(example.prefix) + len(example.endings[k]) - 1
    return 1 / (max(targets, 1) * totals.views)


def _prefix_weight(example: Encoded, views: range, totals: UpdateTotals) -> float:
    if not example.endings:
        return 1 / max(totals.targets, 1)
    return sum(_ending_weight(example, k, totals) for k in views)


def _shares(examples: Sequence[Encoded], totals: UpdateTotals) -> Tensor:
    share = 1 / max(totals.examples, 1)
    return torch.tensor([0.0 if e.label is None else share for e in examples])


def _labels(examples: Sequence[Encoded]) -> Tensor:
    """Long where every label is an index, float32 where one is a score."""
    labels = [example.label for example in examples]
    if any(isinstance(label, float) for label in labels):
        return torch.tensor([float("nan") if label is None else label for label in labels])
    return torch.tensor([NO_LABEL if label is None else int(label) for label in labels])
