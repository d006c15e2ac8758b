"""Sets up processes, device, precision and batches."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from transformers import PreTrainedModel

from finetune.batching.collate import Layout
from finetune.batching.sampler import BatchConfig
from finetune.distributed.fsdp import fsdp_requested
from finetune.models.attention.interface import ATTENTION_NAME
from task_formats import UsageError

Precision = Literal["fp32", "bf16"]

TOKENS_PER_FORWARD = {"cpu": 2048, "cuda": 16384}
"""Default limit of tokens per forward pass for gpt2-small, by type of device."""
GPT2_SMALL_SIZE = 12 * 768
"""Layers times width."""


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
    """Joins the processes of this job, on the given device or the best available one.

    Args:
        precision: Of the computations.
        device: cpu, cuda, cuda:1 or the like.

    Raises:
        UsageError: There is no such device, or there are fewer devices than processes.
    """
    chosen = _find_device(device)
    fsdp_requested()  # Reports unsupported options before anything is loaded.
    rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if chosen.type != "cpu" and 0 < devices <= rank:
        what = f"process {rank + 1} of this machine finds only {devices} device(s)"
        raise UsageError(what, cure=f"Start {devices} with --num-processes {devices}.")
    _reset_device(chosen)
    # accelerate looks for other CPU processes only if it is told to use the CPU.
    return RunAccelerator(precision, chosen)


def _find_device(name: str | None) -> torch.device:
    """The device of a name, or the best one; it has an index if the name has one."""
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None or name == "cpu":
        return best if best and name is None else torch.device("cpu")
    count = torch.accelerator.device_count()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if best is None or device is None or device.type != best.type or (device.index or 0) >= count:
        known = ["cpu", *(f"{best.type}:{index}" for index in range(count) if best)]
        cure = f"Omit the device, or use {' or '.join(known)}."
        raise UsageError(f"no device {name!r}", where="--device", cure=cure)
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = f"several processes cannot share {name}"
        raise UsageError(what, where="--device", cure=f"Use {device.type}: each takes its own.")
    return device


def _reset_device(device: torch.device) -> None:
    """Lets a single process change its device; accelerators made before keep theirs."""
    state = AcceleratorState._shared_state
    if state and state["num_processes"] == 1 and state["device"] != device:
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
    cuda: Any = torch.backends.cuda
    memory: Any = torch.utils.deterministic
    mode = torch.get_deterministic_debug_mode()
    kernels = cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    fill = memory.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        # The gradients of these two attention kernels depend on the order of additions.
        cuda.enable_mem_efficient_sdp(False)
        cuda.enable_cudnn_sdp(False)
        # A debugging aid that costs time.
        memory.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cuda.enable_mem_efficient_sdp(kernels[0])
        cuda.enable_cudnn_sdp(kernels[1])
        memory.fill_uninitialized_memory = fill


def choose_batch_config(
    decoder: PreTrainedModel,
    device: torch.device,
    pad_id: int,
    *,
    layout: Layout | Literal["auto"] = "auto",
    max_tokens: int | None = None,
) -> BatchConfig:
    """Decides how a decoder's batches are made.

    Args:
        decoder: Packed and shared layouts need gptft's own attention in it.
        device: Decides the default of `max_tokens`.
        pad_id: Token id of padding.
        layout: "auto" is packed where the decoder can take it, else separate.
        max_tokens: Limit of tokens per forward pass. The default grows for decoders smaller than
            gpt2-small, whose activations need less memory per token.

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
        scale = GPT2_SMALL_SIZE / (config.num_hidden_layers * config.hidden_size)
        limit = TOKENS_PER_FORWARD.get(device.type, TOKENS_PER_FORWARD["cpu"])
        max_tokens = int(limit * min(max(scale, 0.5), 4.0))
    return BatchConfig(layout, pad_id, max_tokens)
