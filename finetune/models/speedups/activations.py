"""Parts of a decoder exchanged for ones that compute the same in less time."""

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from finetune.models.speedups.dropout import FastDropout


def replace_modules(decoder: PreTrainedModel) -> None:
    """Exchanges activations and dropouts of the decoder, in place; weights and names stay."""
    for module in list(decoder.modules()):
        for name, child in module.named_children():
            if (other := _quicker(child)) is not None:
                setattr(module, name, other)


def _quicker(module: nn.Module) -> nn.Module | None:
    """The same function in one kernel; None where there is nothing to gain."""
    if type(module) is nn.Dropout and not module.inplace:
        return FastDropout(module.p)
    if type(module) is NewGELUActivation:
        # GPT-2's GELU is the tanh approximation, written as eight operations in Python.
        return nn.GELU(approximate="tanh")
    return None
