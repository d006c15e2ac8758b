"""Log-likelihoods of answers; each context, and each shared beginning of contexts, is read once."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from finetune.batching.collate import Batch, Layout, Span, collate, to_device
from finetune.batching.sampler import BatchConfig, batch_by_tokens
from finetune.data.token_store import compute_lengths
from finetune.evaluation.evaluate import (
    RowLogits,
    compute_with_halving,
    gather_logits,
    show_evaluation,
)
from finetune.models.attention.interface import ATTENTION_NAME, PrefixCache
from finetune.models.language_model import LanguageModel
from task_formats import Encoded

MIN_SAVED_TOKENS = 256
"""A shared beginning is cached where that saves at least this many tokens."""


class PrefixGroup(NamedTuple):
    """Requests whose contexts agree in their first `length` tokens."""

    length: int
    """0 for requests that share too little."""
    requests: np.ndarray
    """(n,) indices of the requests."""


def find_prefix_groups(requests: Sequence[Encoded]) -> list[PrefixGroup]:
    """Assigns every request to one group; requests that share too little form the last one.

    Requests are sorted by their contexts, so that neighbours share the most tokens. A request
    joins the group before it unless that would lower what the group saves, which is its length
    times the number of its requests less one.
    """
    contexts = [np.asarray(request.prefix) for request in requests]
    order = sorted(range(len(requests)), key=lambda n: tuple(requests[n].prefix))
    groups: list[tuple[int, list[int]]] = []
    for n in order:
        longest = len(contexts[n]) - 1  # The last token is an input: it predicts the answer.
        if groups:
            length, members = groups[-1]
            common = min(length, longest, _common_length(contexts[members[-1]], contexts[n]))
            if common * len(members) > max(length * (len(members) - 1), 0):
                groups[-1] = (common, [*members, n])
                continue
        groups.append((longest, [n]))
    shared, others = [], list[int]()
    for length, members in groups:
        if length * (len(members) - 1) >= MIN_SAVED_TOKENS:
            shared.append(PrefixGroup(length, np.array(members)))
        else:
            others += members
    return shared + ([PrefixGroup(0, np.array(others))] if others else [])


def _common_length(one: np.ndarray, other: np.ndarray) -> int:
    """Tokens that two contexts have in common at their beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def collate_answers(
    requests: Sequence[Encoded], layout: Layout, pad_id: int = 0, cached_tokens: int = 0
) -> Batch:
    """Collates N contexts (prefix) with up to K answers (endings) each.

    The first `cached_tokens` of every context, which a prefix cache holds, are left out of the
    batch, and positions continue after them. The batch's `lm_index`, `lm_target` and `target_view`
    have one entry per answer token; `target_view` is n · K + k for answer k of request n.

    The last token of an answer is predicted but never an input. So an answer of one token costs
    nothing beyond its context, and answers that differ only in their last token are read once.
    """
    inputs = [required_inputs(request, cached_tokens) for request in requests]
    batch = collate(inputs, layout, pad_id)
    columns = batch.tokens.shape[1]
    max_answers = max(len(request.endings) for request in requests)
    last_index = np.full((len(requests), max_answers), -1, np.int64)
    targets: list[tuple[int, int, int]] = []
    spans = iter(batch.spans)
    for n, (request, read) in enumerate(zip(requests, inputs, strict=True)):
        count = len(read.endings) if layout == "separate" and len(read.endings) > 1 else 1
        locations = _locate_stems(read, list(islice(spans, count)), columns)
        last_index[n, : len(request.endings)] = 0
        for k, answer in enumerate(request.endings):
            indices = locations[tuple(answer[:-1])]
            view = [n * max_answers + k] * len(answer)
            targets += zip(indices, answer, view, strict=True)
    lm_index, lm_target, views = np.array(targets, np.int64).reshape(-1, 3).T.copy()
    return batch._replace(
        position_ids=batch.position_ids + cached_tokens,
        last_index=torch.from_numpy(last_index),
        lm_index=torch.from_numpy(lm_index),
        lm_target=torch.from_numpy(lm_target),
        target_view=torch.from_numpy(views),
    )


def required_inputs(request: Encoded, cached_tokens: int = 0) -> Encoded:
    """Returns what the model reads of a request: the uncached context, and each stem once.

    A stem is an answer without its last token.
    """
    stems = dict.fromkeys(tuple(ending[:-1]) for ending in request.endings if len(ending) > 1)
    return Encoded(request.id, request.prefix[cached_tokens:], tuple(stems))


def _locate_stems(
    inputs: Encoded, spans: Sequence[Span], columns: int
) -> dict[tuple[int, ...], list[int]]:
    """Each stem of a request, and flat indices, into (R · T), of what predicts its answers.

    These are the last token of the context and all tokens of the stem.
    """
    locations: dict[tuple[int, ...], list[int]] = {}
    stems = iter(inputs.endings)
    for span in spans:
        end = span.row * columns + span.start + span.prefix_length - 1
        locations.setdefault((), [end])
        start = end + 1
        for stem in islice(stems, len(span.ending_lengths)):
            locations[tuple(stem)] = [end, *range(start, start + len(stem))]
            start += len(stem)
    return locations


class AnswerScorer:
    """Computes log-likelihoods that equal those of one sequence at a time up to rounding."""

    def __init__(
        self, decoder: PreTrainedModel, batch_config: BatchConfig, accelerator: Accelerator
    ) -> None:
        self._model = LanguageModel(decoder).eval()
        self._batch_config, self._accelerator = batch_config, accelerator
        self._caches_prefixes = decoder.config._attn_implementation == ATTENTION_NAME

    def log_likelihoods(self, requests: Sequence[Encoded]) -> np.ndarray:
        """Returns (N, K) log-likelihoods in nats of K answers (endings) to N contexts (prefix).

        Equal requests are computed once, and processes share the work. The value is -inf where a
        request has fewer answers.
        """
        keys = [(tuple(request.prefix), *map(tuple, request.endings)) for request in requests]
        distinct = dict(zip(keys, requests, strict=True))
        indices = {key: n for n, key in enumerate(distinct)}
        passes = self._forward_passes(list(distinct.values()))
        passes = show_evaluation(passes, "answers", len(distinct), self._accelerator)
        table = gather_logits(passes, len(distinct), self._accelerator)
        return table[[indices[key] for key in keys]]

    def _forward_passes(self, requests: Sequence[Encoded]) -> Iterator[RowLogits]:
        """Yields the results of this process's share, one forward pass at a time."""
        groups = [PrefixGroup(0, np.arange(len(requests)))]
        if self._caches_prefixes:
            groups = find_prefix_groups(requests)
        layout, _, limit = self._batch_config
        batches = []
        for group in groups:
            inputs = [required_inputs(requests[n], group.length) for n in group.requests]
            lengths, indices = compute_lengths(inputs), np.arange(len(inputs))
            passes = batch_by_tokens(indices, lengths, layout, limit)
            batches += [(group, lengths, rows) for rows in passes]
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        prefix_cache, cached_group = None, None
        for group, lengths, rows in batches[rank::processes]:
            if group is not cached_group:
                prefix_cache, cached_group = self._fill_cache(requests, group), group
            compute = partial(self._compute, requests, group, prefix_cache)
            results, self._batch_config = compute_with_halving(
                compute, rows, lengths, self._batch_config
            )
            yield [(int(group.requests[row]), scores) for row, scores in results]

    def _fill_cache(self, requests: Sequence[Encoded], group: PrefixGroup) -> PrefixCache | None:
        """Reads the shared beginning of a group."""
        if not group.length:
            return None
        prefix = requests[group.requests[0]].prefix[: group.length]
        batch = collate([Encoded("", prefix, ())], "packed", self._batch_config.pad_id)
        batch, prefix_cache = to_device(batch, self._accelerator.device), PrefixCache()
        with torch.inference_mode(), self._accelerator.autocast():
            self._model.backbone.hidden_states(batch, prefix_cache)
        prefix_cache.full = True
        return prefix_cache

    def _compute(
        self,
        requests: Sequence[Encoded],
        group: PrefixGroup,
        prefix_cache: PrefixCache | None,
        rows: np.ndarray,
    ) -> np.ndarray:
        """(n, K) log-likelihoods of n requests, given as indices into `group.requests`."""
        selected = [requests[n] for n in group.requests[rows]]
        layout, pad_id, _ = self._batch_config
        batch = collate_answers(selected, layout, pad_id, group.length)
        batch = to_device(batch, self._accelerator.device)
        with torch.inference_mode(), self._accelerator.autocast():
            states = self._model.backbone.hidden_states(batch, prefix_cache)
            scores = self._model.score_endings(states, batch)
        return scores.float().cpu().numpy()
