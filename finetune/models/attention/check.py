"""Compares states that are computed in packed rows with those of transformers' own code."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from finetune.batching.collate import Layout, Span, collate
from finetune.models.decoder import DecoderWrapper, find_body
from task_formats import Encoded, UsageError

_WINDOWS = ("sliding_window", "attention_chunk_size")
"""Settings from which transformers makes masks of limited range."""
_SHORT_WINDOW = 4
"""Shorter than the texts of the check, so that a family whose window is only in its mask is found.
"""
TOLERANCE = 1e-3
"""Differences of float32 states, relative to their norm, that are rounding. A token of another text
or a missing term of an attention score changes states by far more."""


class StateCheck:
    """Short texts of unequal length with the states that a decoder's own code computes of them.

    The texts are the three views of two examples: a prefix with two endings and one with one.
    Neither the decoder nor torch's generator is changed.

    Args:
        decoder: As transformers made it. It reads each text alone, without padding.

    Raises:
        UsageError: The states depend on later tokens, or are not finite.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        self._decoder = decoder
        ids = _token_ids(decoder)
        self._examples = [
            Encoded(
                str(prefix),
                list(islice(ids, prefix)),
                tuple(list(islice(ids, length)) for length in endings),
            )
            for prefix, endings in ((4, (3, 5)), (2, (3,)))
        ]
        views = [[*e.prefix, *ending] for e in self._examples for ending in e.endings]
        with _evaluating(decoder):
            body = find_body(decoder)
            self._expected = [
                body(input_ids=torch.tensor([view]), use_cache=False).last_hidden_state[0]
                for view in views
            ]
        if not all(bool(states.isfinite().all()) for states in self._expected):
            raise UsageError(
                f"this base ({decoder.config.model_type}) computes numbers that are not finite",
                where="base.path",
                cure="Use a base whose weights are intact.",
            )
        one, other = (states[: len(self._examples[0].prefix)] for states in self._expected[:2])
        if not _difference(one, other) <= TOLERANCE:
            raise UsageError(
                f"this base ({decoder.config.model_type}) is no causal decoder: "
                "its states depend on later tokens",
                where="base.path",
                cure="Use a decoder such as gpt2.",
            )

    def difference(self, layout: Layout, *, last_tokens_only: bool = False) -> float:
        """Returns the largest difference of a token's state in this layout, relative to its norm.

        A state that is not a number gives infinity. With `last_tokens_only` only the last token of
        each text is computed and compared.
        """
        batch = collate(self._examples, layout)
        with _evaluating(self._decoder):
            states = DecoderWrapper(self._decoder).hidden_states(
                batch, last_tokens_only=last_tokens_only
            )
        views = [view for span in batch.spans for view in _views(span, batch.tokens.shape[1])]
        first = -1 if last_tokens_only else 0
        pairs = zip(views, self._expected, strict=True)
        found = [_difference(states[view][first:], expected[first:]) for view, expected in pairs]
        return math.inf if any(map(math.isnan, found)) else max(found)


def has_linear_output(decoder: PreTrainedModel) -> bool:
    """True where the logits are a linear map of the states, but for a scale and a cap.

    The decoder must be as transformers made it. Neither it nor torch's generator is changed.
    """
    tokens = torch.tensor([list(islice(_token_ids(decoder), 4))])
    wrapper = DecoderWrapper(decoder)
    with _evaluating(decoder):
        expected = decoder(input_ids=tokens, use_cache=False).logits[0]
        states = find_body(decoder)(input_ids=tokens, use_cache=False).last_hidden_state[0]
        weight, bias = wrapper.output_layer()
        if states.shape[1] != weight.shape[1]:
            return False
        logits = wrapper.logit_transform.apply(linear(states, weight, bias))
    return logits.shape == expected.shape and _difference(logits, expected) <= TOLERANCE


def _token_ids(decoder: PreTrainedModel) -> Iterator[int]:
    """Ids from the middle of the vocabulary: special tokens are at its ends."""
    size = len(cast(Tensor, decoder.get_input_embeddings().weight))
    return (number % size for number in count(size // 2))


@contextmanager
def _evaluating(decoder: PreTrainedModel) -> Iterator[None]:
    """Within the block there is no dropout and no gradient, and windows are short."""
    training = decoder.training
    owners = [x for m in decoder.modules() for x in (m, getattr(m, "config", None))]
    settings = [(owner, name, getattr(owner, name, None)) for owner in owners for name in _WINDOWS]
    windows = [item for item in settings if isinstance(item[2], int) and item[2] > _SHORT_WINDOW]
    decoder.eval()
    try:
        for owner, name, _ in windows:
            setattr(owner, name, _SHORT_WINDOW)
        # Not inference_mode: what a decoder caches would then be useless for training.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for owner, name, value in windows:
            setattr(owner, name, value)
        decoder.train(training)


def _views(span: Span, columns: int) -> Iterator[list[int]]:
    """Flat indices, into (R, T), of the tokens of each view."""
    start = span.row * columns + span.start
    ending = start + span.prefix_length
    for length in span.ending_lengths:
        yield [*range(start, start + span.prefix_length), *range(ending, ending + length)]
        ending += length


def _difference(states: Tensor, expected: Tensor) -> float:
    """The largest |a − b| / |b| over (T, D) states."""
    norms = expected.norm(dim=-1).clamp_min(torch.finfo(expected.dtype).tiny)
    return float(((states - expected).norm(dim=-1) / norms).max())
