"""Log-likelihoods of answers; each context, and each shared beginning of contexts, is read once."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from finetune.batching.collate import collate, to_device
from finetune.batching.sampler import BatchConfig, batch_by_tokens
from finetune.data.token_store import ExampleLengths, compute_lengths
from finetune.evaluation.evaluate import RowLogits, compute_with_halving, gather_logits
from finetune.models.attention.interface import ATTENTION_NAME, PrefixCache
from finetune.models.language_model import LanguageModel
from finetune.prompting.answer_batches import collate_answers, required_inputs
from finetune.prompting.prefix_groups import PrefixGroup, find_prefix_groups
from task_formats import Encoded


class AnswerScorer:
    """Computes log-likelihoods of answers given contexts.

    Batching and caching do not change the result: log-likelihoods equal those of one sequence at
    a time up to float32 rounding.
    """

    def __init__(
        self, decoder: PreTrainedModel, batch_config: BatchConfig, accelerator: Accelerator
    ) -> None:
        self._model = LanguageModel(decoder).eval()
        self._batch_config, self._accelerator = batch_config, accelerator
        self._caches_prefixes = decoder.config._attn_implementation == ATTENTION_NAME

    def log_likelihoods(self, requests: Sequence[Encoded]) -> np.ndarray:
        """Scores every answer of every request.

        Equal requests are computed once, and processes share the work.

        Args:
            requests: N contexts (prefix), each with up to K answers (endings).

        Returns:
            (N, K) log-likelihoods in nats on every process; -inf where a request has fewer answers.
        """
        distinct = {_key(request): request for request in requests}
        indices = {key: n for n, key in enumerate(distinct)}
        table = gather_logits(
            self._forward_passes(list(distinct.values())), len(distinct), self._accelerator
        )
        return table[[indices[_key(request)] for request in requests]]

    def _forward_passes(self, requests: Sequence[Encoded]) -> Iterator[RowLogits]:
        """Yields the results of this process's share, one forward pass at a time."""
        groups = (
            find_prefix_groups(requests)
            if self._caches_prefixes
            else [PrefixGroup(0, np.arange(len(requests)))]
        )
        batches = [batch for group in groups for batch in self._batches(requests, group)]
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

    def _batches(
        self, requests: Sequence[Encoded], group: PrefixGroup
    ) -> Iterator[tuple[PrefixGroup, ExampleLengths, np.ndarray]]:
        """Batches of requests of similar length, as indices into `group.requests`."""
        lengths = compute_lengths(
            [required_inputs(requests[n], group.length) for n in group.requests]
        )
        rows = np.arange(len(group.requests))
        layout, limit = self._batch_config.layout, self._batch_config.max_tokens_per_forward
        for batch in batch_by_tokens(rows, lengths, layout, limit):
            yield group, lengths, batch

    def _fill_cache(self, requests: Sequence[Encoded], group: PrefixGroup) -> PrefixCache | None:
        """Reads the shared beginning of a group."""
        if not group.length:
            return None
        prefix = requests[group.requests[0]].prefix[: group.length]
        batch = collate([Encoded("", prefix, ())], "packed", self._batch_config.pad_id)
        prefix_cache = PrefixCache()
        with torch.inference_mode(), self._accelerator.autocast():
            self._model.backbone.hidden_states(
                to_device(batch, self._accelerator.device), prefix_cache
            )
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
        batch = to_device(
            collate_answers(selected, layout, pad_id, group.length), self._accelerator.device
        )
        with torch.inference_mode(), self._accelerator.autocast():
            states = self._model.backbone.hidden_states(batch, prefix_cache)
            scores = self._model.score_endings(states, batch)
        return scores.float().cpu().numpy()


def _key(request: Encoded) -> tuple[tuple[int, ...], ...]:
    return (tuple(request.prefix), *map(tuple, request.endings))
