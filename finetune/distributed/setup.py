"""Sets up processes, device, precision and batches."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from finetune.batching.collate import Layout
from finetune.batching.sampler import BatchConfig
from finetune.distributed.collectives import all_reduce_max
from finetune.distributed.fsdp import fsdp_requested
from finetune.distributed.hardware import total_memory
from finetune.models.attention.interface import ATTENTION_NAME
from task_formats import UsageError

Precision = Literal["fp32", "bf16"]

TOKENS_PER_FORWARD = {"cpu": 2048, "cuda": 16384}
"""Default limit of tokens per forward pass for gpt2-small, by type of device."""
_TRAINING_FACTOR = 4
"""Training on a CPU, a pass may have this many times as many tokens, if memory allows it."""
_ACTIVATION_BYTES = 80
"""About what a layer keeps for the backward pass, in bytes per token and unit of its width."""
_ACTIVATION_SHARE = 4
"""Activations of a pass may fill one part in this many of the memory."""


class RunAccelerator(Accelerator):
    """An Accelerator with its own precision.

    accelerate has one precision per Python process. Here a run in bfloat16 can be followed by one
    in float32, and every predictor keeps its own.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        if device.index is not None:
            # By default accelerate takes the current device of several.
            PartialState().device = device
        super().__init__(mixed_precision="no", cpu=device.type == "cpu")
        self.precision = precision

    @property
    def mixed_precision(self) -> str:
        """The precision in accelerate's terms."""
        return "bf16" if self.precision == "bf16" else "no"

    def autocast(self, autocast_handler: None = None) -> torch.autocast:
        """Computes in bfloat16 over float32 weights within the block, if the precision is bf16."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def create_accelerator(precision: Precision, device: str | None = None) -> RunAccelerator:
    """Joins the processes of this job, on a device such as cuda:1 or the best available one.

    Raises:
        UsageError: There is no such device, there are fewer devices than processes, or the
            variables of a launcher are incomplete.
    """
    _check_launcher_variables()
    chosen = _find_device(device)
    fsdp_requested()  # Reports unsupported options before anything is loaded.
    rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if chosen.type != "cpu" and 0 < devices <= rank:
        what = f"process {rank + 1} of this machine finds only {devices} device(s)"
        raise UsageError(what, cure=f"Start {devices} with --num-processes {devices}.")
    _reset_state(chosen)
    # accelerate looks for other CPU processes only with cpu=True.
    return RunAccelerator(precision, chosen)


def _check_launcher_variables() -> None:
    """Raises UsageError where only some variables of a launcher are set: processes would wait."""
    numbers = {name: os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    for name, value in numbers.items():
        if value is not None and not value.isdecimal():
            raise UsageError(f"{name} is {value!r}, not a number", cure=f"Run: unset {name}")
    if int(numbers["WORLD_SIZE"] or 1) > 1:
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not os.environ.get(name)]:
            what = f"WORLD_SIZE is {numbers['WORLD_SIZE']}, but {', '.join(missing)} is not set"
            cure = "Run: unset WORLD_SIZE. Several processes are started with --num-processes."
            raise UsageError(what, cure=cure)


def _find_device(name: str | None) -> torch.device:
    """The device of a name, or the best one; it has an index if the name has one."""
    known = ["cpu"]
    if torch.accelerator.is_available() and (best := torch.accelerator.current_accelerator()):
        indices = range(torch.accelerator.device_count())
        known = [best.type, *(f"{best.type}:{index}" for index in indices), "cpu"]
    if name is not None and name not in known:
        cure = f"Omit the device, or use {' or '.join(known)}."
        raise UsageError(f"no device {name!r}", where="--device", cure=cure)
    return torch.device(name or known[0])


def _reset_state(device: torch.device) -> None:
    """Lets a single process change its device, or train here after another Trainer did in bf16.

    Accelerators made before keep their state.
    """
    state = AcceleratorState._shared_state
    fits = state and state["device"] == device and state.get("_mixed_precision") == "no"
    if state and state["num_processes"] == 1 and not fits:
        # New dictionaries, because existing accelerators hold the old ones.
        AcceleratorState._shared_state, PartialState._shared_state = {}, {}


def choose_precision(
    precision: Literal["auto", "fp32", "bf16"], device: str | None = None
) -> Precision:
    """Resolves "auto": bf16 on recent GPUs and on CPUs with AMX or AVX-512 BF16, else fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available() and device != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if fast else "fp32"


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Within the block a GPU gives the same bits every time, more slowly; a CPU always does."""
    if not enabled:
        yield
        return
    # Read once, at the first matrix product of a process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    mode = torch.get_deterministic_debug_mode()
    fill = memory.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        # A debugging aid that costs time.
        memory.fill_uninitialized_memory = False
        # With the other attention kernels gradients depend on the order of additions.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill


def describe_own_attention(decoder: PreTrainedModel) -> str | None:
    """A message for the user where a decoder keeps its own attention."""
    if decoder.config._attn_implementation == ATTENTION_NAME:
        return None
    family = decoder.config.model_type
    return f"{family} keeps its own attention: each text is a padded row (layout separate)"


def choose_batch_config(
    decoder: PreTrainedModel,
    accelerator: Accelerator,
    pad_id: int,
    *,
    layout: Layout | Literal["auto"] = "auto",
    max_tokens: int | None = None,
    training: bool = False,
) -> BatchConfig:
    """Decides how a decoder's batches are made.

    Training on a CPU, a pass may have up to four times as many tokens where its activations fit
    into a quarter of the memory: in each pass all weights are cast to bfloat16, and gradients are
    added once more. All processes take the smallest limit, so that they make equally many passes.

    Args:
        decoder: Packed and shared layouts need gptft's own attention in it.
        accelerator: Its device decides the default of `max_tokens`.
        pad_id: Token id of padding.
        layout: "auto" is packed where the decoder can take it, else separate.
        max_tokens: Limit of tokens per forward pass; by default more for smaller decoders.
        training: Whether passes are followed by backward passes; all processes call this together.

    Raises:
        UsageError: The decoder cannot take the layout.
    """
    packs = decoder.config._attn_implementation == ATTENTION_NAME
    if layout == "auto":
        layout = "packed" if packs else "separate"
    elif layout != "separate" and not packs:
        raise UsageError(
            f"this base ({decoder.config.model_type}) cannot use the layout {layout!r}",
            where="train.layout",
            cure="It needs its own attention: use separate, or auto.",
        )
    if max_tokens is None:
        config = decoder.config.get_text_config()
        scale = 12 * 768 / (config.num_hidden_layers * config.hidden_size)  # of gpt2-small
        device = accelerator.device.type
        limit = TOKENS_PER_FORWARD.get(device, TOKENS_PER_FORWARD["cpu"])
        max_tokens = int(limit * min(max(scale, 0.5), 4.0))
        if training and device == "cpu":
            token = config.num_hidden_layers * config.hidden_size * _ACTIVATION_BYTES
            # The processes of a run share the memory of their machine.
            processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
            fitting = (total_memory() or 0) // (processes * _ACTIVATION_SHARE * token)
            max_tokens = max(max_tokens, min(fitting, _TRAINING_FACTOR * max_tokens))
            # Another machine of the run may have less memory.
            max_tokens = -all_reduce_max([-max_tokens], accelerator)[0]
    return BatchConfig(layout, pad_id, max_tokens)
