"""Perplexity per token and bits per byte of plain text."""

import math
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.decoder import DecoderWrapper
from finetune.models.losses import Outputs


class TextScorer(nn.Module):
    """A decoder whose output for each example is its negative log-likelihood."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = DecoderWrapper(decoder)

    def forward(self, batch: Batch) -> Outputs:
        """(N, 1) negative log-likelihoods in nats, summed over the targets of each example."""
        states = self.backbone.hidden_states(batch)[batch.lm_index]
        nats = self.backbone.token_losses(states, batch.lm_target)
        examples = batch.example_id.flatten()[batch.lm_index]
        sums = nats.new_zeros(len(batch.last_index)).index_add(0, examples, nats)
        return Outputs(sums[:, None], nats.new_zeros(()))


class Perplexity(NamedTuple):
    """How well a text is predicted."""

    perplexity: float
    """Per token."""
    bits_per_byte: float
    """Independent of the tokenizer, so decoders with different ones compare."""
    loss: float
    """Nats per token."""


def measure_perplexity(nats: float, targets: int, text_bytes: int) -> Perplexity:
    """Returns perplexity and bits per byte from the negative log-likelihood of a whole text.

    >>> measure_perplexity(8 * math.log(2), targets=4, text_bytes=16).bits_per_byte
    0.5
    """
    loss = nats / targets
    return Perplexity(math.exp(loss), nats / math.log(2) / text_bytes, loss)
