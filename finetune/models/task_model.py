"""Two readers of a decoder: a linear head for fine-tuning, and the language model itself."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.attention.interface import ATTENTION_NAME, PrefixCache
from finetune.models.attention.masks import AttentionLayout
from finetune.models.losses import Outputs, lm_loss, token_losses
from task_formats import Format, Labels


class LinearHead(nn.Module):
    """A linear map of the states at the extract tokens, summed over the axis without a label.

    A linear map of a sum is the sum of the maps, so for two orders of a pair this is the paper's
    "add the two states, then classify": the bias comes after the sum, and one dropout mask serves
    all views of an example, as in the original.
    """

    def __init__(self, width: int, classes: int, chooses: bool, dropout: float = 0.1) -> None:
        super().__init__()
        self.chooses, self.dropout = chooses, dropout
        self.weight = nn.Parameter(0.02 * torch.randn(1 if chooses else classes, width))
        self.bias = nn.Parameter(torch.zeros(1 if chooses else classes))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """(N, K, D) states and (N, K) booleans to (N, L) logits, L being K for choices, else C."""
        if self.training and self.dropout > 0:
            ones = features.new_ones(features.shape[0], 1, features.shape[2])
            features = features * nn.functional.dropout(ones, self.dropout)
        # In float32 whatever the decoder computed in: it is small, and its sums decide.
        with torch.autocast(features.device.type, enabled=False):
            scores = features.to(self.weight.dtype) @ self.weight.t()  # (N, K, C)
        if self.chooses:
            return (scores[..., 0] + self.bias).masked_fill(~present, -torch.inf)
        return scores.masked_fill(~present[..., None], 0).sum(1) + self.bias


class DecoderWrapper(nn.Module):
    """A decoder that reads a Batch in whatever layout it comes."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder
        self.logit_transform = LogitTransform.of(decoder)

    def hidden_states(
        self, batch: Batch, memory: PrefixCache | None = None, *, last_tokens_only: bool = False
    ) -> Tensor:
        """(R·T, D) last hidden states; with a full `memory`, of texts that continue it.

        With `last_tokens_only` only the states of the views' last tokens are valid.
        """
        body = unwrap_adapters(self.decoder).base_model
        arguments = {"input_ids": batch.tokens, "position_ids": batch.position_ids}
        if self.decoder.config._attn_implementation == ATTENTION_NAME:
            extra = {"memory": memory} if memory else {}
            found = body(
                **arguments,
                attention_layout=AttentionLayout(batch, last_tokens_only),
                use_cache=False,
                **extra,
            )
        else:
            found = body(**arguments, **_padding_mask(batch))
        return cast(Tensor, found.last_hidden_state).flatten(0, 1)

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """(V, D) weight and (V,) bias of the layer that predicts tokens."""
        layer = self.decoder.get_output_embeddings()
        return cast(Tensor, layer.weight), cast("Tensor | None", getattr(layer, "bias", None))

    def lm_loss(self, states: Tensor, target: Tensor, share: Tensor) -> Tensor:
        """Σ share · negative log-likelihood of M targets after their (M, D) states."""
        return lm_loss(*self._scaled(states), target, share, self.logit_transform.cap)

    def token_losses(self, states: Tensor, target: Tensor) -> Tensor:
        """(M,) negative log-likelihoods of targets after their (M, D) states, without gradient."""
        return token_losses(*self._scaled(states), target, self.logit_transform.cap)

    def _scaled(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, weight and bias whose plain logits have the family's scale."""
        weight, bias = self.output_layer()
        scale = self.logit_transform.scale
        if scale == 1:
            return states, weight, bias
        return states * scale, weight, None if bias is None else bias * scale


class LogitTransform(NamedTuple):
    """What a family makes of its logits z after the linear map: cap · tanh(scale · z / cap)."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, decoder: PreTrainedModel) -> "LogitTransform":
        """As the decoder's configuration says, under whatever name its family has for it."""
        config = decoder.config.get_text_config()
        scale = 1.0
        for name, power in {**_POWERS, **_OWN_POWERS.get(config.model_type, {})}.items():
            value = getattr(config, name, None)
            if power and value is not None:
                scale *= float(value) ** power
        caps = (getattr(config, name, None) for name in _CAPS)
        return cls(scale, next((float(cap) for cap in caps if cap), None))


_POWERS = {
    "logit_scale": 1,
    "lm_head_multiplier": 1,
    "output_multiplier": 1,
    "logits_scaling": -1,
    "logits_mup_width_multiplier": -1,
}
"""Settings that logits are multiplied or divided by: cohere, falcon_h1, muse, granite, inkling."""
_OWN_POWERS = {"hyperclovax": {"logits_scaling": 1}, "mpt": {"logit_scale": 0}}
"""Families that mean something else by a name; transformers' mpt reads its own nowhere."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""As gemma2, recurrent_gemma and xlstm call it."""


def unwrap_adapters(decoder: PreTrainedModel) -> PreTrainedModel:
    """The transformers model itself, without a wrapper of adapters."""
    return cast(PreTrainedModel, getattr(decoder, "get_base_model", lambda: decoder)())


def _padding_mask(batch: Batch) -> dict[str, Tensor]:
    """Right-padded rows need no mask under causal attention; rows padded on the left do."""
    if len(batch.spans) > len(batch.tokens) or any(len(s.endings) > 1 for s in batch.spans):
        raise ValueError("this decoder's own attention reads the layout separate, a view a row")
    if all(span.start == 0 for span in batch.spans):
        return {}
    return {"attention_mask": (batch.example >= 0).long()}


class TaskModel(nn.Module):
    """Decoder and head: what is fine-tuned, and what predicts."""

    def __init__(
        self, decoder: PreTrainedModel, format: Format, labels: Labels, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.backbone = DecoderWrapper(decoder)
        width = decoder.get_output_embeddings().weight.shape[1]
        self.head = LinearHead(width, labels.width, format.chooses, dropout)

    def forward(self, batch: Batch, lm: bool = False) -> Outputs:
        """(N, L) logits, and with `lm` the batch's share of the LM loss."""
        states = self.backbone.hidden_states(batch, last_tokens_only=not lm)
        features = states[batch.last_index.clamp(min=0)]
        logits = self.head(features, batch.last_index >= 0)
        if not lm:
            return Outputs(logits, logits.new_zeros(()))
        loss = self.backbone.lm_loss(states[batch.lm_index], batch.lm_target, batch.token_weight)
        return Outputs(logits, loss)


class LanguageModel(nn.Module):
    """A decoder alone: the log-probability of each ending, and the loss of plain text."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = DecoderWrapper(decoder)

    def forward(self, batch: Batch, lm: bool = False) -> Outputs:
        """(N, K) log-probabilities of the endings in nats, or with `lm` the LM loss instead."""
        states = self.backbone.hidden_states(batch)
        if not lm:
            return Outputs(self.score_endings(states, batch), states.new_zeros(()))
        logits = batch.example_weight.new_full(batch.last_index.shape, -torch.inf)
        loss = self.backbone.lm_loss(states[batch.lm_index], batch.lm_target, batch.token_weight)
        return Outputs(logits, loss)

    def score_endings(self, states: Tensor, batch: Batch) -> Tensor:
        """(N, K) log-probabilities in nats of what the batch's targets say; -inf where absent."""
        asked = batch.view >= 0
        nll = self.backbone.token_losses(states[batch.lm_index[asked]], batch.lm_target[asked])
        sums = nll.new_zeros(batch.last_index.numel()).index_add(0, batch.view[asked], nll)
        return (-sums.view_as(batch.last_index)).masked_fill(batch.last_index < 0, -torch.inf)
