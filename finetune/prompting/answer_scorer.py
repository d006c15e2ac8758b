"""Log-likelihoods of answers, each context and each common beginning of contexts read once."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from finetune.batching.collate import collate, to_device
from finetune.batching.sampler import batch_by_tokens
from finetune.data.token_store import ExampleLengths, compute_lengths
from finetune.evaluation.evaluate import (
    BatchConfig,
    RowLogits,
    compute_within_memory,
    gather_logits,
)
from finetune.models.attention.interface import ATTENTION_NAME, PrefixCache
from finetune.models.task_model import LanguageModel
from finetune.prompting.answer_batches import collate_answers, trim
from finetune.prompting.prefix_groups import PrefixGroup, find_prefix_groups
from task_formats import Encoded


class AnswerScorer:
    """A decoder that tells how likely answers are after their contexts.

    What is read together changes the work, not the result: the log-likelihoods are those of one
    sequence at a time, to float32 rounding.
    """

    def __init__(
        self, decoder: PreTrainedModel, batch_config: BatchConfig, accelerator: Accelerator
    ) -> None:
        self._model = LanguageModel(decoder).eval()
        self._reading, self._accelerator = batch_config, accelerator
        self._remembers = decoder.config._attn_implementation == ATTENTION_NAME

    def score(self, requests: Sequence[Encoded]) -> np.ndarray:
        """(N, K) log-probabilities in nats; -inf where a request has fewer answers.

        Equal requests are scored once, and every process gets all scores.
        """
        distinct = {_key(request): request for request in requests}
        places = {key: n for n, key in enumerate(distinct)}
        found = gather_logits(
            self._rounds(list(distinct.values())), len(distinct), self._accelerator
        )
        return found[[places[_key(request)] for request in requests]]

    def _rounds(self, requests: Sequence[Encoded]) -> Iterator[RowLogits]:
        """This process's share, a forward pass at a time."""
        trunks = find_prefix_groups(requests) if self._remembers else [_no_trunk(requests)]
        passes = [one for trunk in trunks for one in self._group(requests, trunk)]
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        memory, remembered = None, None
        for trunk, sizes, rows in passes[rank::processes]:
            if trunk is not remembered:
                memory, remembered = self._remember(requests, trunk), trunk
            read = partial(self._read, requests, trunk, memory)
            found, self._reading = compute_within_memory(read, rows, sizes, self._reading)
            yield [(int(trunk.requests[row]), scores) for row, scores in found]

    def _group(
        self, requests: Sequence[Encoded], trunk: PrefixGroup
    ) -> Iterator[tuple[PrefixGroup, ExampleLengths, np.ndarray]]:
        """A trunk's requests in forward passes of like lengths: their places in the trunk."""
        sizes = compute_lengths([trim(requests[n], trunk.length) for n in trunk.requests])
        layout, budget = self._reading.layout, self._reading.max_tokens_per_forward
        for rows in batch_by_tokens(np.arange(len(trunk.requests)), sizes, layout, budget):
            yield trunk, sizes, rows

    def _remember(self, requests: Sequence[Encoded], trunk: PrefixGroup) -> PrefixCache | None:
        if not trunk.length:
            return None
        beginning = requests[trunk.requests[0]].prefix[: trunk.length]
        batch = collate([Encoded("", beginning, ())], "packed", self._reading.pad_id)
        memory = PrefixCache()
        with torch.inference_mode(), self._accelerator.autocast():
            self._model.backbone.hidden_states(to_device(batch, self._accelerator.device), memory)
        memory.full = True
        return memory

    def _read(
        self,
        requests: Sequence[Encoded],
        trunk: PrefixGroup,
        memory: PrefixCache | None,
        rows: np.ndarray,
    ) -> np.ndarray:
        """(n, K) log-probabilities of n of a trunk's requests, by their places in it."""
        asked = [requests[n] for n in trunk.requests[rows]]
        batch = collate_answers(asked, self._reading.layout, self._reading.pad_id, trunk.length)
        here = to_device(batch, self._accelerator.device)
        with torch.inference_mode(), self._accelerator.autocast():
            states = self._model.backbone.hidden_states(here, memory)
            scores = self._model.score_endings(states, here)
        return scores.float().cpu().numpy()


def _key(request: Encoded) -> tuple[tuple[int, ...], ...]:
    return (tuple(request.prefix), *map(tuple, request.endings))


def _no_trunk(requests: Sequence[Encoded]) -> PrefixGroup:
    return PrefixGroup(0, np.arange(len(requests)))
