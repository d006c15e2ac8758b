"""A decoder without a head: scores of prompted answers, and the loss of plain text."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.decoder import DecoderWrapper
from finetune.models.losses import Outputs


class LanguageModel(nn.Module):
    """A decoder alone, for prompting and pre-training."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = DecoderWrapper(decoder)

    def forward(self, batch: Batch, lm: bool = False) -> Outputs:
        """Scores the endings of a batch, or computes its LM loss.

        Returns:
            (N, K) log-probabilities of the endings in nats and a loss of 0; with `lm`, logits of
            -inf and the batch's share of the LM loss.
        """
        states = self.backbone.hidden_states(batch)
        if not lm:
            return Outputs(self.score_endings(states, batch), states.new_zeros(()))
        logits = batch.example_weight.new_full(batch.last_index.shape, -torch.inf)
        loss = self.backbone.lm_loss(states[batch.lm_index], batch.lm_target, batch.token_weight)
        return Outputs(logits, loss)

    def score_endings(self, states: Tensor, batch: Batch) -> Tensor:
        """(R·T, D) states of a batch to (N, K) log-probabilities in nats; -inf where absent."""
        in_ending = batch.target_view >= 0
        index, target = batch.lm_index[in_ending], batch.lm_target[in_ending]
        nll = self.backbone.token_losses(states[index], target)
        sums = nll.new_zeros(batch.last_index.numel()).index_add(
            0, batch.target_view[in_ending], nll
        )
        return (-sums.view_as(batch.last_index)).masked_fill(batch.last_index < 0, -torch.inf)
