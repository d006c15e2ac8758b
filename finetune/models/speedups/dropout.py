"""FastDropout whose random numbers cost less than the product they decide."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as native_dropout

_LEVELS = 2**16
"""Values of 16 bits: the grain of the probability."""


def draw_mask(count: int, probability: float) -> tuple[Tensor, float]:
    """(count,) int8, 1 where kept and 0 where dropped, and what the kept are multiplied by.

    Numbers come from torch's generator, 64 bits at a time, and each 16 of them are compared with
    a threshold: on a CPU a seventh of the time of Bernoulli draws. The probability is rounded to
    a multiple of 2⁻¹⁶ and the factor is that of the rounded one, so that means are exact.
    """
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    words = torch.empty(math.ceil(count / 4), dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[:count] >= dropped - _LEVELS // 2
    # As int8, because a float times a boolean takes three times as long.
    return kept.view(torch.int8), _LEVELS / (_LEVELS - dropped)


def fast_dropout(values: Tensor, probability: float) -> Tensor:
    """Values of any shape, each 0 with a probability and else made larger, so that means stay."""
    if probability == 0 or values.device.type != "cpu":
        return native_dropout(values, probability)
    return _Drop.apply(values, probability)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        kept, ctx.factor = draw_mask(values.numel(), probability)
        kept = kept.view(values.shape)
        ctx.save_for_backward(kept)
        return (values * kept).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (outer[0] * kept).mul_(ctx.factor), None


class FastDropout(nn.Dropout):
    """`nn.Dropout` in all but its random numbers."""

    def forward(self, input: Tensor) -> Tensor:
        """The values, some of them dropped while training."""
        return fast_dropout(input, self.p) if self.training else input
