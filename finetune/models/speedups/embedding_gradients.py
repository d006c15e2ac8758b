"""Token tables, whose gradients grow in place where one process trains on a CPU.

A pass reads a thousand rows of a table of fifty thousand. PyTorch makes a gradient of the whole
table for that, zeros but for those rows, and adds it to what the passes before have left: of
gpt2-small 150 MB that are written, read and given back in every pass. In place only the rows that
were read are touched, and the LM loss adds its part without a detour. The sums are the same.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_MARK = "grows_in_place"


def accumulate_in_place(model: nn.Module, processes: int) -> None:
    """From now on the model's tables gather gradients in place, where that is possible.

    Several processes exchange gradients as autograd hands them over: theirs stay as they are.
    """
    for module in model.modules() if processes == 1 else ():
        if type(module) is nn.Embedding and _can_grow(module.weight):
            module.sparse = True
            setattr(module.weight, _MARK, True)


def _can_grow(weight: Tensor) -> bool:
    # What is no leaf is computed from other weights (adapters), and they want the gradient.
    return weight.is_leaf and weight.requires_grad and weight.device.type == "cpu"


def grows(weight: Tensor) -> bool:
    """Whether whoever makes a gradient of this weight may add it to `weight.grad` itself."""
    return getattr(weight, _MARK, False) and weight.grad is not None


def clear_gradients(model: nn.Module) -> None:
    """No weight has a gradient any more; what grows in place begins with zeros.

    A table that no pass reads is a table without gradient elsewhere, which Adam leaves alone; here
    it decays like one whose gradient happens to be 0.
    """
    growing = list(_growing(model))
    kept = [weight.grad for weight in growing]
    model.zero_grad(set_to_none=True)
    for weight, room in zip(growing, kept, strict=True):
        weight.grad = torch.zeros_like(weight) if room is None else room.zero_()


def _growing(model: nn.Module) -> Iterator[nn.Parameter]:
    return (weight for weight in model.parameters() if getattr(weight, _MARK, False))
