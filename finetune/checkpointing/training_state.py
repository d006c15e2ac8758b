"""What training changes, as named tensors: weights and the optimizer's moments."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from finetune.distributed.fsdp import gather_tensor, reshard, shard_tensor

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def capture_state(model: nn.Module, optimizer: AdamW, keep: bool = True) -> dict[str, Tensor]:
    """Every trained weight with its moments. Frozen weights come from the base again.

    All processes call this together; what is sharded comes whole, where it is kept.
    """
    reshard(model)
    found = {}
    for name, parameter in _trained(model):
        found[f"weight.{name}"] = gather_tensor(parameter.detach(), keep)
        for moment in _MOMENTS:
            if moment in optimizer.state.get(parameter, {}):
                found[f"{moment}.{name}"] = gather_tensor(optimizer.state[parameter][moment], keep)
    return found


def restore_state(model: nn.Module, optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Puts captured tensors back, bit for bit. ValueError where they are another model's."""
    names = {name for name, _ in _trained(model)}
    saved = {name.partition(".")[2] for name in tensors}
    if names != saved:
        raise ValueError(f"the checkpoint holds other weights: {sorted(names ^ saved)[:3]}")
    _check_shapes(model, tensors)
    for name, parameter in _trained(model):
        with torch.no_grad():
            parameter.copy_(shard_tensor(tensors[f"weight.{name}"], parameter))
        moments = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if moments:
            optimizer.state[parameter] = {
                m: shard_tensor(t, parameter) if t.dim() else t.to(parameter.device)
                for m, t in moments.items()
            }


def _check_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """A copy would stretch what is too small, and the optimizer trusts its moments blindly."""
    shapes = {name: parameter.shape for name, parameter in _trained(model)}
    for name, tensor in tensors.items():
        kind, _, part = name.partition(".")
        wanted = torch.Size() if kind == "step" else shapes[part]
        if tensor.shape != wanted or not tensor.is_floating_point():
            raise ValueError(f"{name} is {tuple(tensor.shape)} and should be {tuple(wanted)}")


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, part) for name, part in model.named_parameters() if part.requires_grad]
