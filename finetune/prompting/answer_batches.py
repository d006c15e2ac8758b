"""Collates contexts and answers into a Batch with only the tokens needed to score the answers.

The last token of an answer is predicted but never an input. So an answer of one token costs
nothing beyond its context, and answers that differ only in their last token are read once.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from finetune.batching.collate import Batch, Layout, Span, collate
from task_formats import Encoded


def collate_answers(
    requests: Sequence[Encoded], layout: Layout, pad_id: int = 0, cached_tokens: int = 0
) -> Batch:
    """Collates N contexts with up to K answers each; the batch's targets are the answer tokens.

    Args:
        requests: Contexts as prefix, answers as endings.
        layout: How the texts fill rows of the batch.
        pad_id: Token that fills unused columns.
        cached_tokens: Tokens at the start of every context that a prefix cache holds. They are
            left out of the batch, and positions continue after them.

    Returns:
        A Batch whose `lm_index`, `lm_target` and `view` have one entry per answer token; `view`
        is n · K + k for answer k of request n.
    """
    inputs = [required_inputs(request, cached_tokens) for request in requests]
    batch = collate(inputs, layout, pad_id)
    columns = batch.tokens.shape[1]
    max_answers = max(len(request.endings) for request in requests)
    last_index = np.full((len(requests), max_answers), -1, np.int64)
    targets = []
    spans = iter(batch.spans)
    for n, (request, read) in enumerate(zip(requests, inputs, strict=True)):
        count = len(read.endings) if layout == "separate" and len(read.endings) > 1 else 1
        locations = _locate_stems(read, list(islice(spans, count)), columns)
        last_index[n, : len(request.endings)] = 0
        for k, answer in enumerate(request.endings):
            location = locations[tuple(answer[:-1])]
            targets += [
                (index, token, n * max_answers + k)
                for index, token in zip(location.indices(len(answer)), answer, strict=True)
            ]
    lm_index, lm_target, view = np.array(targets, np.int64).reshape(-1, 3).T.copy()
    return batch._replace(
        position_ids=batch.position_ids + cached_tokens,
        last_index=torch.from_numpy(last_index),
        lm_index=torch.from_numpy(lm_index),
        lm_target=torch.from_numpy(lm_target),
        view=torch.from_numpy(view),
    )


def required_inputs(request: Encoded, cached_tokens: int = 0) -> Encoded:
    """Returns what the model reads of a request: the uncached context, and each stem once.

    A stem is an answer without its last token.
    """
    stems = dict.fromkeys(tuple(ending[:-1]) for ending in request.endings if len(ending) > 1)
    return Encoded(request.id, request.prefix[cached_tokens:], tuple(stems))


class _StemLocation(NamedTuple):
    """Flat indices, into (R · T), of the context's last token and the stem's first token."""

    context_end: int
    stem_start: int

    def indices(self, count: int) -> Iterator[int]:
        """The tokens that predict the `count` tokens of an answer."""
        yield self.context_end
        yield from range(self.stem_start, self.stem_start + count - 1)


def _locate_stems(
    inputs: Encoded, spans: Sequence[Span], columns: int
) -> dict[tuple[int, ...], _StemLocation]:
    """The location of every stem of one request, the empty stem included."""
    ends = [span.row * columns + span.start + span.prefix - 1 for span in spans]
    locations: dict[tuple[int, ...], _StemLocation] = {(): _StemLocation(ends[0], ends[0] + 1)}
    stems = iter(inputs.endings)
    for span, end in zip(spans, ends, strict=True):
        start = end + 1
        for stem in islice(stems, len(span.endings)):
            locations[tuple(stem)] = _StemLocation(end, start)
            start += len(stem)
    return locations
