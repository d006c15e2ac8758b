"""Encoded examples as tensors: one Batch, in three layouts with equal results without dropout.

An example has K views, the token sequences that the decoder reads: two orders of a pair, or one
per choice. They are stored as one prefix and K endings, and a view is the prefix and an ending.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from task_formats import Encoded, Label

Layout = Literal["separate", "shared", "packed"]
"""Rows of a batch: one view each, one example each (prefix stored once), or a single row."""
NO_LABEL = -100
"""Class index of unlabelled examples, which `cross_entropy` ignores."""


class Span(NamedTuple):
    """Adjacent columns of one row that belong to one example: its prefix, then endings."""

    row: int
    start: int
    """The first column."""
    prefix_length: int
    """Tokens of the prefix."""
    ending_lengths: tuple[int, ...]
    """Tokens of each ending."""

    @property
    def length(self) -> int:
        """Number of columns."""
        return self.prefix_length + sum(self.ending_lengths)

    @property
    def stop(self) -> int:
        """The column after the last."""
        return self.start + self.length

    @property
    def longest(self) -> int:
        """Tokens of the longest view, which a sliding window is compared with."""
        return self.prefix_length + max(self.ending_lengths, default=0)


class UpdateTotals(NamedTuple):
    """Denominators of an update's means, over all its forward passes and processes."""

    example_weight: float
    """Labelled examples, each counted with the weight of its class."""
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
    example_id: Tensor
    """(R, T) long: the example a token belongs to; -1 for padding."""
    ending_id: Tensor
    """(R, T) long: the ending a token belongs to; -1 for a prefix and padding."""
    last_index: Tensor
    """(N, K) long: flat index into (R, T) of each view's last token; -1 where there is none."""
    lm_index: Tensor
    """(M,) long: flat index into (R, T) of the state that predicts a target."""
    lm_target: Tensor
    """(M,) long: the token to predict."""
    target_view: Tensor
    """(M,) long: flat index into (N, K) of the ending a target belongs to; -1 for a prefix."""
    token_weight: Tensor
    """(M,) float32: weights of the targets in the LM loss; they sum to 1 over the update."""
    example_weight: Tensor
    """(N,) float32: factors of the examples' task losses: 1 / N for N labelled examples in the
    update, or 1 / (the sum of their class weights); 0 if unlabelled."""
    label: Tensor
    """(N,) long for classes and choices (-100 unlabelled) or float32 for scores (NaN); (N, C)
    float32 for several labels at once: 1 where a label applies, else 0 (NaN unlabelled)."""
    spans: tuple[Span, ...]
    """Where the examples are, on the host, so that attention need not ask the device."""
    windows: int = 1
    """Most windows W of an example. With W > 1 the K columns of `last_index` are those of W
    windows, one window after the other."""


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Copies a batch to a device; to a GPU from pinned memory, without waiting for the copy."""
    moved: dict[str, Any] = {
        name: copy_to_device(value, device)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**moved)


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU's tensor; to a GPU from pinned memory, without waiting for the copy."""
    pin = device.type == "cuda"
    return (values.pin_memory() if pin else values).to(device, non_blocking=pin)


def count_totals(
    examples: Sequence[Encoded], class_weights: Sequence[float] | None = None
) -> UpdateTotals:
    """Counts the labelled examples, views and targets of a whole update.

    `class_weights` are C weights, without which every labelled example counts 1, as always where an
    example may have several labels.
    """
    return UpdateTotals(
        math.fsum(_class_weight(example.label, class_weights) for example in examples),
        sum(len(example.endings) for example in examples),
        sum(max(example.tokens - 1, 0) for example in examples),
    )


def _class_weight(label: Label | None, class_weights: Sequence[float] | None) -> float:
    """The weight of a label in the task loss; 0 without a label."""
    if label is None:
        return 0.0
    is_plain = class_weights is None or isinstance(label, tuple)
    return 1.0 if is_plain else class_weights[int(label)]  # type: ignore[index, arg-type]


def weigh_examples(
    examples: Sequence[Encoded], class_weights: Sequence[float] | None = None
) -> np.ndarray:
    """Returns the (N,) weights of examples in the loss of their update, on any scale.

    With labels it is the weight of the class, and in pre-training the number of targets.
    """
    return np.array(
        [
            _class_weight(example.label, class_weights)
            if example.endings
            else max(example.tokens - 1, 0)
            for example in examples
        ],
        dtype=np.float64,
    )


def collate(
    examples: Sequence[Encoded],
    layout: Layout,
    pad: int = 0,
    totals: UpdateTotals | None = None,
    rounded: bool = False,
) -> Batch:
    """Arranges examples as one Batch.

    The weights of the LM loss are those of GPT-1's code: the mean over a view's targets (every
    token after the start token), then over views, including those of wrong choices. A prefix that
    is read once carries the weight of all its views. Without endings (pre-training) all targets
    weigh the same.

    Args:
        examples: N examples, not empty.
        layout: How they are arranged in rows. It changes results by dropout and rounding only.
        pad: The id of the pad token.
        totals: Counts of the whole update, where the examples are only a part of it.
        rounded: Whether T is rounded up, with padding.

    Returns:
        For "separate" R is the number of views, for "shared" N, and for "packed" 1.
    """
    totals = totals or count_totals(examples)
    placements = list(_arrange(examples, layout))
    spans = tuple(span for span, _, _ in placements)
    height, width = spans[-1].row + 1, max(span.stop for span in spans)
    width = round_up(width) if rounded else width
    grid = np.full((4, height, width), -1, np.int64)
    # Padding is never read, but its position ids must be valid.
    grid[0], grid[1] = pad, np.minimum(np.arange(width), max(s.longest for s in spans) - 1)
    windows = max(example.windows for example in examples)
    width = max(len(example.endings) // example.windows for example in examples)
    last_index = np.full((len(examples), windows * width), -1, np.int64)
    targets = [
        _write_span(grid, last_index, examples[n], span, n, views, totals, width)
        for span, n, views in placements
    ]
    lm_index, lm_target, view, weight = (
        np.concatenate(values) for values in zip(*targets, strict=True)
    )
    labels = [example.label for example in examples]
    known = next((y for y in labels if y is not None), None)
    unlabelled: Label = float("nan") if isinstance(known, float) else NO_LABEL
    unlabelled = (float("nan"),) * len(known) if isinstance(known, tuple) else unlabelled
    example_weight = 1 / (totals.example_weight or 1)
    tokens, position_ids, example_index, ending = map(torch.from_numpy, grid)
    return Batch(
        tokens,
        position_ids,
        example_index,
        ending,
        torch.from_numpy(last_index),
        torch.from_numpy(lm_index),
        torch.from_numpy(lm_target),
        torch.from_numpy(view),
        torch.from_numpy(weight.astype(np.float32)),
        example_weight=torch.tensor([0.0 if y is None else example_weight for y in labels]),
        label=torch.tensor([unlabelled if y is None else y for y in labels]),
        spans=spans,
        windows=windows,
    )


def round_up(count: int) -> int:
    """Rounds a number of tokens up, to a multiple of 8 and of about a sixteenth of it.

    A CPU's library of matrix products compiles kernels for every number of tokens and keeps them.
    Where numbers differ in every pass, as in predictions, memory would grow with each.
    """
    return count + -count % max(8, 2 ** (count.bit_length() - 5))


def _arrange(examples: Sequence[Encoded], layout: Layout) -> Iterator[tuple[Span, int, list[int]]]:
    """Yields every span with its example and the views of it that it holds.

    There is a row per view, a row per example, or one row for all.
    """
    row, start = -1, 0
    for n, example in enumerate(examples):
        views = list(range(len(example.endings)))
        for group in [[k] for k in views] if layout == "separate" and views else [views]:
            if layout != "packed" or row < 0:
                row, start = row + 1, 0
            lengths = tuple(len(example.endings[k]) for k in group)
            span = Span(row, start, len(example.prefix), lengths)
            start = span.stop
            yield span, n, group


def _write_span(
    grid: np.ndarray,
    last_index: np.ndarray,
    example: Encoded,
    span: Span,
    n: int,
    views: list[int],
    totals: UpdateTotals,
    window_width: int,
) -> tuple[np.ndarray, ...]:
    """Writes a span into the (4, R, T) grid and the (N, K) `last_index`.

    `window_width` columns of `last_index` belong to each window.

    Returns:
        lm_index, lm_target, view and token_weight of the span's targets, (m,) each.
    """
    parts = [example.prefix, *(example.endings[k] for k in views)]
    counts = [len(part) for part in parts]
    tokens, position_ids, owner, ending = grid[:, span.row, span.start : span.stop]
    tokens[:], owner[:] = np.concatenate(parts), n
    position_ids[: span.prefix_length] = np.arange(span.prefix_length)
    position_ids[span.prefix_length :] = np.concatenate(
        [
            np.arange(span.prefix_length, span.prefix_length + count)
            for count in (0, *span.ending_lengths)
        ]
    )
    ending[:] = np.repeat([-1, *views], counts)
    index = span.row * grid.shape[2] + span.start + np.arange(span.length)
    window, view_of_window = np.divmod(
        np.arange(len(example.endings)), max(len(example.endings) // example.windows, 1)
    )
    columns = window * window_width + view_of_window  # (K,) of the views in `last_index`.
    last_index[n, columns[views]] = index[np.cumsum(counts)[1:] - 1]
    # The end of the prefix predicts the first token of every ending. The first token of a view is
    # no target.
    predicting = np.where(
        position_ids == span.prefix_length, index[span.prefix_length - 1], index - 1
    )
    column = columns[ending] if len(columns) else ending
    view = np.where(ending < 0, -1, n * last_index.shape[1] + column)
    # The mean over the targets of a view, then the mean over the update's views.
    weights = [
        1 / (max(span.prefix_length + count - 1, 1) * totals.views) for count in span.ending_lengths
    ]
    prefix_weight = sum(weights) if example.endings else 1 / max(totals.targets, 1)
    weight = np.repeat([prefix_weight, *weights], counts)
    targets = (predicting, tokens, view, weight)
    return tuple(values[position_ids > 0] for values in targets)
