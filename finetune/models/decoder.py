"""A pretrained decoder that reads batches in any layout."""

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.attention.interface import ATTENTION_NAME, PrefixCache
from finetune.models.attention.masks import AttentionLayout
from finetune.models.losses import lm_loss, token_losses
from finetune.models.speedups.reused_memory import ReusedMemory


class LogitTransform(NamedTuple):
    """What a family of decoders makes of its logits z: cap · tanh(scale · z / cap)."""

    scale: float = 1.0
    cap: float | None = None
    """None for no cap: scale · z."""

    @classmethod
    def of(cls, decoder: PreTrainedModel) -> "LogitTransform":
        """Reads the transform from a decoder's configuration, whatever its family calls it."""
        config = decoder.config.get_text_config()
        scale = 1.0
        for name, power in {**_SCALE_POWERS, **_EXCEPTIONS.get(config.model_type, {})}.items():
            value = getattr(config, name, None)
            if power and value is not None:
                scale *= float(value) ** power
        caps = (getattr(config, name, None) for name in _CAPS)
        return cls(scale, next((float(cap) for cap in caps if cap), None))

    def apply(self, logits: Tensor) -> Tensor:
        """Transforms logits of any shape."""
        scaled = self.scale * logits
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


_SCALE_POWERS = {
    "logit_scale": 1,
    "lm_head_multiplier": 1,
    "output_multiplier": 1,
    "logits_scaling": -1,
    "logits_mup_width_multiplier": -1,
}
"""Settings that multiply (1) or divide (-1) logits: cohere, falcon_h1, muse, granite, inkling."""
_EXCEPTIONS = {"hyperclovax": {"logits_scaling": 1}, "mpt": {"logit_scale": 0}}
"""Families that use a name differently. transformers' mpt ignores its logit_scale."""
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of the cap in gemma2, recurrent_gemma and xlstm."""


def find_body(decoder: PreTrainedModel) -> nn.Module:
    """Returns the part of a decoder that computes hidden states."""
    body = decoder.base_model
    # llama4's base_model is the decoder itself.
    return body if body is not decoder else getattr(decoder, "model", decoder)


class DecoderWrapper(nn.Module):
    """A decoder that reads a Batch in any layout and computes losses over its vocabulary."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder
        self.logit_transform = LogitTransform.of(decoder)
        self._memory = ReusedMemory()

    def hidden_states(
        self,
        batch: Batch,
        prefix_cache: PrefixCache | None = None,
        *,
        last_tokens_only: bool = False,
    ) -> Tensor:
        """Runs the decoder over a batch.

        Args:
            batch: R rows of T columns.
            prefix_cache: Is filled by the first batch that it is passed with, a single text. The
                texts of later batches continue that text.
            last_tokens_only: Computes the last block for the last token of each view only. All
                other states are then invalid.

        Returns:
            (R·T, D) states after the last block and its norm.

        Raises:
            ValueError: The decoder does not support packed attention, and a row holds more than
                one view.
        """
        # Adapters wrap the model of transformers.
        decoder = getattr(self.decoder, "get_base_model", lambda: self.decoder)()
        body = find_body(decoder)
        inputs: dict[str, Any] = {"input_ids": batch.tokens, "use_cache": False}
        layout = AttentionLayout(batch, last_tokens_only)
        if decoder.config._attn_implementation == ATTENTION_NAME:
            inputs |= {"position_ids": batch.position_ids, "attention_layout": layout}
            inputs |= {"prefix_cache": prefix_cache} if prefix_cache else {}
        elif not layout.one_view_per_row:
            raise ValueError("this decoder supports only the layout 'separate' (one view a row)")
        elif any(span.length < batch.tokens.shape[1] for span in batch.spans):
            # Positions are left to the decoder: it may count from another number than 0.
            inputs |= _supported(body, {"attention_mask": (batch.example_id >= 0).long()})
        outputs = body(**inputs)
        return cast(Tensor, outputs.last_hidden_state).flatten(0, 1)

    def output_layer(self) -> tuple[Tensor, Tensor | None]:
        """The (V, D) weight and the (V,) bias, if any, of the layer that predicts tokens."""
        layer = self.decoder.get_output_embeddings()
        return cast(Tensor, layer.weight), cast("Tensor | None", getattr(layer, "bias", None))

    def lm_loss(self, states: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Σ weight · nll in nats over (M,) targets and weights, from (M, D) states."""
        cap = self.logit_transform.cap
        return lm_loss(*self._scaled(states), target, weight, cap, self._memory)

    def token_losses(self, states: Tensor, target: Tensor) -> Tensor:
        """(M,) losses in nats of (M,) targets, from (M, D) states, without a gradient."""
        return token_losses(*self._scaled(states), target, self.logit_transform.cap, self._memory)

    def _scaled(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, weight and bias whose linear map gives logits with the family's scale."""
        weight, bias = self.output_layer()
        scale = self.logit_transform.scale
        if scale == 1:
            return states, weight, bias
        return states * scale, weight, None if bias is None else bias * scale


def _supported(module: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments that a module's forward pass takes."""
    parameters = inspect.signature(module.forward).parameters
    takes_all = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    return {name: value for name, value in arguments.items() if takes_all or name in parameters}
