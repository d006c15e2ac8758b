"""How well plain text is predicted: perplexity per token, and bits per byte."""

import math
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.decoder import DecoderWrapper
from finetune.models.losses import Outputs


class TextScorer(nn.Module):
    """A decoder that gives the negative log-likelihood of every example as its one number."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = DecoderWrapper(decoder)

    def forward(self, batch: Batch) -> Outputs:
        """(N, 1) nats, summed over the targets of each example."""
        states = self.backbone.hidden_states(batch)[batch.lm_index]
        nats = self.backbone.token_losses(states, batch.lm_target)
        owner = batch.example.flatten()[batch.lm_index]
        sums = nats.new_zeros(len(batch.last_index)).index_add(0, owner, nats)
        return Outputs(sums[:, None], nats.new_zeros(()))


class Perplexity(NamedTuple):
    """A text's prediction, per token and per byte. `loss` is in nats per token."""

    perplexity: float
    bits_per_byte: float
    """Does not depend on the tokenizer, so that models with different ones compare."""
    loss: float


def measure_perplexity(nats: float, targets: int, text_bytes: int) -> Perplexity:
    """From the negative log-likelihood of a whole text.

    >>> measure_perplexity(8 * math.log(2), targets=4, text_bytes=16).bits_per_byte
    0.5
    """
    loss = nats / targets
    return Perplexity(math.exp(loss), nats / math.log(2) / text_bytes, loss)
