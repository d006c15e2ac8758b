"""The tensors of a checkpoint: trained weights and the optimizer's moments, by name."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from finetune.distributed.fsdp import gather_tensor, reshard, shard_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def capture_state(model: nn.Module, optimizer: AdamW, keep: bool = True) -> dict[str, Tensor]:
    """Returns every trained weight with its moments. Frozen weights are read from the base again.

    All processes call it together.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer.
        keep: Whether this process needs the tensors; sharded ones are gathered where it is True.

    Returns:
        "weight.NAME", "exp_avg.NAME", "exp_avg_sq.NAME" and "step.NAME" for each parameter.
    """
    reshard(model)
    tensors = {}
    for name, parameter in _trained_parameters(model):
        tensors[f"weight.{name}"] = gather_tensor(parameter.detach(), keep)
        state = optimizer.state.get(parameter, {})
        for moment in _MOMENTS:
            if moment in state:
                tensors[f"{moment}.{name}"] = gather_tensor(state[moment], keep)
    return tensors


def restore_state(model: nn.Module, optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Restores captured tensors, bit for bit. Raises ValueError where they are another model's."""
    parameters = dict(_trained_parameters(model))
    saved = {name.partition(".")[2] for name in tensors}
    if parameters.keys() != saved:
        different = sorted(parameters.keys() ^ saved)[:3]
        raise ValueError(f"the checkpoint holds other weights: {different}")
    _check_shapes(parameters, tensors)
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(shard_tensor(tensors[f"weight.{name}"], parameter))
        moments = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if moments:
            optimizer.state[parameter] = {
                m: shard_tensor(t, parameter) if t.dim() else t.to(parameter.device)
                for m, t in moments.items()
            }


def _check_shapes(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """`copy_` would broadcast a smaller tensor, and AdamW does not check its moments."""
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition(".")
        expected = torch.Size() if kind == "step" else parameters[parameter].shape
        if tensor.shape != expected or not tensor.is_floating_point():
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected)}")


def _trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
