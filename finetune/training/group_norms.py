"""Gradient norms of groups of an update's examples, from which the noise scale is estimated."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finetune.distributed.fsdp import total_norm
from finetune.training.noise_scale import GroupSizes


class GradientGroups(NamedTuple):
    """Groups of an update's examples whose gradient norms are measured, for the noise scale."""

    ends: tuple[int, ...]
    """For each group of this process, the number of passes up to its end."""
    shares: tuple[float, ...]
    """The loss weights of these groups: their parts of the whole update's."""
    sizes: GroupSizes
    """Of all groups, on all processes."""


class GroupNorms(NamedTuple):
    """What an update measured for the noise scale, besides the norm of its gradient."""

    square: Tensor
    """(): the mean squared norm of the groups' gradients: `small` of `estimate_moments`."""
    sizes: GroupSizes


class GroupNormSum:
    """Sums the squared gradient norms of groups; after the last one the gradients are whole."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.square = torch.zeros(())
        """Σ_m |p_m|² / W_m: p_m is the gradient of group m, and W_m its share."""
        self._parameters = parameters
        self._earlier: list[Tensor | None] = [None] * len(parameters)

    def end_group(self, share: float, is_last: bool) -> None:
        """Measures the gradients, and puts them aside so that the next group starts from none."""
        gradients = [parameter.grad for parameter in self._parameters]
        norm = total_norm([gradient for gradient in gradients if gradient is not None])
        self.square = self.square.to(norm.device) + norm.square() / share
        pairs = [
            (gradient, earlier)
            for gradient, earlier in zip(gradients, self._earlier, strict=True)
            if gradient is not None and earlier is not None
        ]
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
        whole = [
            earlier if gradient is None else gradient
            for gradient, earlier in zip(gradients, self._earlier, strict=True)
        ]
        self._earlier = whole
        for parameter, gradient in zip(self._parameters, whole, strict=True):
            parameter.grad = gradient if is_last else None
