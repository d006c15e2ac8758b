"""Contexts and answers as a Batch that reads only what is needed to score the answers.

The last token of an answer is predicted and never read. So an answer of one token costs nothing
but its context, and answers that differ in their last token alone are read once.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from finetune.batching.collate import Batch, Layout, Span, collate
from task_formats import Encoded


def collate_answers(
    requests: Sequence[Encoded], layout: Layout, pad: int = 0, remembered: int = 0
) -> Batch:
    """N contexts with K answers each as one Batch; targets are the tokens of the answers.

    `remembered` tokens at the beginning of every context have been read before: they stand in no
    row, and places go on from there.
    """
    readable = [trim(request, remembered) for request in requests]
    batch = collate(readable, layout, pad)
    width = batch.tokens.shape[1]
    answers = max(len(request.endings) for request in requests)
    last = np.full((len(requests), answers), -1, np.int64)
    found = []
    spans = iter(batch.spans)
    for n, (request, read) in enumerate(zip(requests, readable, strict=True)):
        count = len(read.endings) if layout == "separate" and len(read.endings) > 1 else 1
        starts = _locate(read, list(islice(spans, count)), width)
        last[n, : len(request.endings)] = 0
        for k, ending in enumerate(request.endings):
            start = starts[tuple(ending[:-1])]
            found += [
                _Target(source, token, n * answers + k)
                for source, token in zip(start.sources(len(ending)), ending, strict=True)
            ]
    source, target, view = np.array(found, np.int64).reshape(-1, 3).T.copy()
    return batch._replace(
        position_ids=batch.position_ids + remembered,
        last_index=torch.from_numpy(last),
        lm_index=torch.from_numpy(source),
        lm_target=torch.from_numpy(target),
        view=torch.from_numpy(view),
    )


def trim(request: Encoded, remembered: int = 0) -> Encoded:
    """What is read of a request: the context from `remembered` on, each different stem once."""
    stems = dict.fromkeys(tuple(ending[:-1]) for ending in request.endings if len(ending) > 1)
    return Encoded(request.id, request.prefix[remembered:], tuple(stems))


class _Target(NamedTuple):
    source: int
    token: int
    view: int


class _Start(NamedTuple):
    """Where an answer is predicted from: the context's end, and its stem's first token."""

    context_end: int
    stem: int

    def sources(self, count: int) -> Iterator[int]:
        yield self.context_end
        yield from range(self.stem, self.stem + count - 1)


def _locate(read: Encoded, spans: Sequence[Span], width: int) -> dict[tuple[int, ...], _Start]:
    """Flat places, in (R, T), of every stem of one example; of the empty stem too."""
    ends = [span.row * width + span.start + span.prefix - 1 for span in spans]
    found: dict[tuple[int, ...], _Start] = {(): _Start(ends[0], ends[0] + 1)}
    stems = iter(read.endings)
    for span, end in zip(spans, ends, strict=True):
        at = end + 1
        for stem in islice(stems, len(span.endings)):
            found[tuple(stem)] = _Start(end, at)
            at += len(stem)
    return found
