"""FSDP2: weights, gradients and moments in shards, one per process.

It is configured for accelerate: `accelerate launch --use_fsdp --fsdp_version 2`, or its
configuration file. The units are the decoder's blocks. On CPUs it works too, over gloo.
"""

import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from task_formats import UsageError

_UNSUPPORTED = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def fsdp_requested() -> bool:
    """Whether accelerate is configured for FSDP. Raises UsageError for unsupported options."""
    for name in _UNSUPPORTED:
        if _is_true(name):
            what = f"an option of accelerate is not supported ({name}=true)"
            raise UsageError(what, cure="Use DDP, which needs no option, or FSDP2 without it.")
    if not _is_true("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP is supported in its version 2", cure="Pass --fsdp_version 2.")
    # Otherwise transformers would read weights on the first process alone, and we add rows.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return True


def activation_checkpointing_requested() -> bool:
    """Whether accelerate's options of FSDP ask for activation checkpointing."""
    return fsdp_requested() and _is_true("FSDP_ACTIVATION_CHECKPOINTING")


def _is_true(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def prepare_model(model: nn.Module, accelerator: Accelerator) -> None:
    """Moves a model to this process's device, in shards if accelerate is configured for FSDP.

    With accelerate's offload option the shards and their moments stay in the memory of the CPU.

    Raises:
        UsageError: The weights are to be sharded and are in 4 bits.
    """
    if accelerator.num_processes == 1 or not fsdp_requested():
        model.to(accelerator.device)
        return
    if not all(weight.is_floating_point() for weight in model.parameters()):
        cure = "Leave the option --use_fsdp out: 4-bit weights are not sharded."
        raise UsageError("FSDP cannot shard 4-bit weights", where="base.quantization", cure=cure)
    device = accelerator.device.type
    mesh = init_device_mesh(device, (accelerator.num_processes,))
    reshard_early = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    offload = OffloadPolicy()
    if _is_true("FSDP_OFFLOAD_PARAMS"):
        offload = CPUOffloadPolicy(pin_memory=device != "cpu")
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_early, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder's blocks: the members of its longest lists, without lists inside blocks."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    longest = max(map(len, stacks), default=0)
    inner = {module for stack in stacks for block in stack for module in block.modules()}
    for stack in stacks:
        if len(stack) == longest and stack not in inner:
            yield from stack


def is_sharded(model: nn.Module) -> bool:
    """Whether every forward pass is one of all processes together."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Replaces gathered weights by their shards, which are those that the optimizer has.

    A forward pass without a backward pass leaves the outermost weights gathered.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def gather_tensor(tensor: Tensor, keep: bool = True) -> Tensor:
    """Returns the whole of a tensor, on the CPU if it is sharded, or nothing without `keep`.

    All processes call this for the same tensors in the same order.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if keep else whole.new_empty(0)


def shard_tensor(whole: Tensor, like: Tensor) -> Tensor:
    """Returns the tensor on the device of another one, and sharded as that one is."""
    placed = whole.to(like.device)
    if not isinstance(like, DTensor):
        return placed
    # Every process has read the whole of it: nothing is sent.
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def gather_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor] | None:
    """Returns all weights of a sharded model, whole and on the CPU; None without shards.

    Empty without `keep`. All processes call this together.
    """
    if not is_sharded(model):
        return None
    tensors = model.state_dict(keep_vars=True)
    # Tied weights are one tensor with several names.
    unique = {id(tensor): tensor for tensor in tensors.values()}
    whole = {key: gather_tensor(tensor.detach(), keep) for key, tensor in unique.items()}
    return {name: whole[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clips gradients to a global norm; returns the norm before, a () tensor."""
    norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def total_norm(gradients: list[Tensor]) -> Tensor:
    """Returns the global norm of gradients, a () tensor; they may be sharded."""
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def inference_context(model: nn.Module) -> torch.no_grad | torch.inference_mode:
    """The fastest context without gradients: gathered weights must not be inference tensors."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
