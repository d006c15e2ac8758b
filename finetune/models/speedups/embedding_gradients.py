"""Gradients of embeddings that accumulate in place, for training in one process on a CPU.

A forward pass reads about a thousand rows of a table of fifty thousand. For it autograd makes a
gradient of the whole table and adds it to that of earlier passes: for gpt2-small 150 MB that are
written, read and freed in every pass. In place, only the rows that were read are touched, and the
LM loss adds its part directly. The sums are the same.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_MARK = "accumulates_in_place"


def accumulate_in_place(model: nn.Module, processes: int) -> None:
    """Lets the gradients of a model's embeddings accumulate in place, where that is possible.

    From then on, clear its gradients with `clear_gradients`. With several processes nothing
    changes: they exchange the gradients that autograd makes.
    """
    for module in model.modules() if processes == 1 else ():
        if type(module) is nn.Embedding and _is_supported(module.weight):
            module.sparse = True
            setattr(module.weight, _MARK, True)


def _is_supported(weight: Tensor) -> bool:
    # A weight that is no leaf is computed from other weights (adapters), which need its gradient.
    return weight.is_leaf and weight.requires_grad and weight.device.type == "cpu"


def accumulates_in_place(weight: Tensor) -> bool:
    """True where a gradient of this weight may be added to `weight.grad` outside of autograd."""
    return getattr(weight, _MARK, False) and weight.grad is not None


def clear_gradients(model: nn.Module) -> None:
    """Removes all gradients; those that accumulate in place become zeros.

    Adam skips a weight without a gradient. An embedding that no pass reads has a gradient of zeros
    here, so it still decays.
    """
    in_place = list(_marked(model))
    gradients = [weight.grad for weight in in_place]
    model.zero_grad(set_to_none=True)
    for weight, gradient in zip(in_place, gradients, strict=True):
        weight.grad = torch.zeros_like(weight) if gradient is None else gradient.zero_()


def _marked(model: nn.Module) -> Iterator[nn.Parameter]:
    return (weight for weight in model.parameters() if getattr(weight, _MARK, False))
