"""A model whose weights, gradients and moments are cut into shards, one per process: FSDP2.

It is asked for in accelerate's way: `accelerate launch --use_fsdp --fsdp_version 2`, or its
config file. The decoder's blocks are the units that are gathered and let go, whatever policy
accelerate is told; on CPUs, where accelerate knows no FSDP, it works alike (over gloo).
"""

import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from task_formats import UsageError

_DDP = "Several processes need none of these: without them each has the whole model (DDP)."


def fsdp_requested() -> bool:
    """Whether accelerate is told to shard. UsageError for what of its options is not supported."""
    for name in ("DEEPSPEED", "MEGATRON_LM"):
        if _says(f"ACCELERATE_USE_{name}"):
            raise UsageError(f"accelerate is told to use {name}, which is not supported", cure=_DDP)
    if not _says("ACCELERATE_USE_FSDP"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("FSDP is supported in its version 2", cure="Pass --fsdp_version 2.")
    for option in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        if _says(f"FSDP_{option}"):
            what = f"accelerate's option --fsdp_{option.lower()} is not supported"
            raise UsageError(what, cure="Lower train.tokens_per_forward to save memory.")
    # Otherwise transformers would read weights on the first process alone, and we add rows.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return True


def _says(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")


def prepare_model(model: nn.Module, accelerator: Accelerator) -> None:
    """Moves a model to this process's device, in shards where that is asked for, in place."""
    if accelerator.num_processes == 1 or not fsdp_requested():
        model.to(accelerator.device)
        return
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    again = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder's blocks: the members of its longest lists, those in other blocks left out."""
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    longest = max(map(len, stacks), default=0)
    inner = {id(part) for stack in stacks for block in stack for part in list(block.modules())[1:]}
    for stack in stacks:
        if len(stack) == longest and id(stack) not in inner:
            yield from stack


def is_sharded(model: nn.Module) -> bool:
    """True where every forward pass is one of all processes together."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Puts shards back in the place of weights that were gathered; does nothing without shards.

    A pass without a backward one leaves the outermost weights gathered, and until the next pass
    the model's parameters are then others than those that the optimizer knows.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def gather_tensor(tensor: Tensor, keep: bool = True) -> Tensor:
    """The whole of a tensor; of a sharded one on the CPU, and nothing where it is not kept.

    All processes call this for the same tensors in the same order.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if keep else whole.new_empty(0)


def shard_tensor(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another one is: this process's shard of it, or all on its device."""
    if not isinstance(like, DTensor):
        return whole.to(like.device)
    # Every process has read the whole of it: nothing is sent.
    placed = whole.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def gather_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor] | None:
    """All weights of a sharded model, whole and on the CPU; None for a model without shards.

    Empty where they are not kept. All processes call this together.
    """
    if not is_sharded(model):
        return None
    found: dict[str, Tensor] = {}
    wholes: dict[int, Tensor] = {}  # Tied weights are one tensor with several names.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in wholes:
            wholes[id(tensor)] = gather_tensor(tensor.detach(), keep)
        found[name] = wholes[id(tensor)]
    return found if keep else {}


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Clips gradients to a global norm and gives what it was before: (), the same everywhere."""
    norm = nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def inference_context(model: nn.Module) -> torch.no_grad | torch.inference_mode:
    """The fastest way to read only: gathered weights must not become inference tensors."""
    return torch.no_grad() if is_sharded(model) else torch.inference_mode()
