"""Log-likelihoods of answers, each context and each common beginning of contexts read once."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from finetune.attention import NAME, Memory
from finetune.batch import Batch, collate
from finetune.evaluation import Reading, Round, gather
from finetune.model import LanguageModel
from finetune.prompting.batches import collate_answers, trim
from finetune.prompting.trunks import Trunk, find_trunks
from finetune.sampling import group, measure
from task_formats import Encoded


class AnswerScorer:
    """A decoder that tells how likely answers are after their contexts.

    What is read together changes the work, not the result: the log-likelihoods are those of one
    sequence at a time, to float32 rounding.
    """

    def __init__(
        self, decoder: PreTrainedModel, reading: Reading, accelerator: Accelerator
    ) -> None:
        self._model = LanguageModel(decoder).eval()
        self._reading, self._accelerator = reading, accelerator
        self._remembers = decoder.config._attn_implementation == NAME

    def score(self, requests: Sequence[Encoded]) -> np.ndarray:
        """(N, K) log-probabilities in nats; -inf where a request has fewer answers.

        Equal requests are scored once, and every process gets all scores.
        """
        distinct = {_key(request): request for request in requests}
        places = {key: n for n, key in enumerate(distinct)}
        found = gather(self._rounds(list(distinct.values())), len(distinct), self._accelerator)
        return found[[places[_key(request)] for request in requests]]

    def _rounds(self, requests: Sequence[Encoded]) -> Iterator[Round]:
        """This process's share, a forward pass at a time."""
        trunks = find_trunks(requests) if self._remembers else [_no_trunk(requests)]
        passes = [(trunk, rows) for trunk in trunks for rows in self._group(requests, trunk)]
        rank, processes = self._accelerator.process_index, self._accelerator.num_processes
        memory, remembered = None, None
        for trunk, rows in passes[rank::processes]:
            with torch.inference_mode(), self._accelerator.autocast():
                if trunk is not remembered:
                    memory, remembered = self._remember(requests, trunk), trunk
                scores = self._read([requests[n] for n in rows], trunk.length, memory)
            yield list(zip(rows.tolist(), scores.float().cpu().numpy(), strict=True))

    def _group(self, requests: Sequence[Encoded], trunk: Trunk) -> list[np.ndarray]:
        """A trunk's requests in forward passes of like lengths."""
        read = [trim(requests[n], trunk.length) for n in trunk.requests]
        layout, budget = self._reading.layout, self._reading.budget
        groups = group(np.arange(len(read)), measure(read), layout, budget)
        return [trunk.requests[rows] for rows in groups]

    def _remember(self, requests: Sequence[Encoded], trunk: Trunk) -> Memory | None:
        if not trunk.length:
            return None
        beginning = requests[trunk.requests[0]].prefix[: trunk.length]
        batch = collate([Encoded("", beginning, ())], "packed", self._reading.pad)
        memory = Memory()
        self._model.reader.states(self._send(batch), memory)
        memory.full = True
        return memory

    def _read(self, requests: Sequence[Encoded], skip: int, memory: Memory | None) -> Tensor:
        batch = collate_answers(requests, self._reading.layout, self._reading.pad, skip)
        here = self._send(batch)
        states = self._model.reader.states(here, memory)
        return self._model.score_endings(states, here)

    def _send(self, batch: Batch) -> Batch:
        return cast(Batch, send_to_device(batch, self._accelerator.device))


def _key(request: Encoded) -> tuple[tuple[int, ...], ...]:
    return (tuple(request.prefix), *map(tuple, request.endings))


def _no_trunk(requests: Sequence[Encoded]) -> Trunk:
    return Trunk(0, np.arange(len(requests)))
