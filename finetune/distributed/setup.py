"""What this machine computes with: processes, device, precision and layout."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from transformers import PreTrainedModel

from finetune.batching.collate import Layout
from finetune.distributed.fsdp import fsdp_requested
from finetune.models.attention.interface import ATTENTION_NAME
from finetune.recipe.schema import TrainConfig
from task_formats import UsageError

Precision = Literal["fp32", "bf16"]

TOKENS = {"cpu": 2048, "cuda": 16384}
"""Tokens of a forward pass of gpt2-small where the recipe names none, by kind of device."""
GPT2_SMALL = 12 * 768
"""Layers times width."""


class RunAccelerator(Accelerator):
    """This process among its peers, with a precision of its own.

    accelerate has one precision for all that a Python process ever does. Here a run in bfloat16
    can be followed by one in float32, and each predictor keeps to its own.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        if device.index is not None:
            # Left alone, accelerate takes the current one of several.
            PartialState().device = device
        super().__init__(mixed_precision="no", cpu=device.type == "cpu")
        self.precision = precision

    @property
    def mixed_precision(self) -> str:
        """In accelerate's words."""
        return "bf16" if self.precision == "bf16" else "no"

    def autocast(self, autocast_handler: None = None) -> torch.autocast:
        """Computes in bfloat16 within the block, over float32 weights, where that is wanted."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def create_accelerator(precision: Precision, device: str | None = None) -> RunAccelerator:
    """This process's place among its peers, on the device it is given or the best there is.

    UsageError where there is no such device, or too few for the processes of this machine.
    """
    wanted = _find_device(device)
    fsdp_requested()  # What is not supported is told before anything is loaded.
    place, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if wanted.type != "cpu" and 0 < devices <= place:
        what = f"process {place + 1} of this machine finds only {devices} device(s)"
        raise UsageError(what, cure=f"Start {devices} with --num-processes {devices}.")
    _forget_device(wanted)
    # Only when it is told that it has but a CPU does accelerate look for peers there.
    return RunAccelerator(precision, wanted)


def _find_device(name: str | None) -> torch.device:
    """The device of a name, or the best there is; with an index where the name has one."""
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None or name == "cpu":
        return best if best and name is None else torch.device("cpu")
    count = torch.accelerator.device_count()
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if best is None or found is None or found.type != best.type or (found.index or 0) >= count:
        known = ["cpu", *(f"{best.type}:{index}" for index in range(count) if best)]
        cure = f"Leave the device out, or say {' or '.join(known)}."
        raise UsageError(f"no device {name!r} here", where="--device", cure=cure)
    if found.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = f"several processes cannot all compute on {name}"
        raise UsageError(what, where="--device", cure=f"Say {found.type}: each takes its own.")
    return found


def _forget_device(wanted: torch.device) -> None:
    """Lets a single process choose its device anew; what was placed before stays where it is."""
    state = AcceleratorState._shared_state
    if state and state["num_processes"] == 1 and state["device"] != wanted:
        # New dictionaries: those who share the old ones keep them.
        AcceleratorState._shared_state, PartialState._shared_state = {}, {}


def choose_precision(
    asked: Literal["auto", "fp32", "bf16"], device: str | None = None
) -> Precision:
    """bf16 where the hardware is made for it: recent GPUs, and CPUs with AMX or AVX-512 BF16."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available() and device != "cpu":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    made_for_it = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if made_for_it else "fp32"


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Within the block a GPU computes the same bits every time, at a cost; a CPU always does."""
    if not wanted:
        yield
        return
    # Read once, when the first matrix product of a process is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cuda: Any = torch.backends.cuda
    memory: Any = torch.utils.deterministic
    algorithms = torch.get_deterministic_debug_mode()
    kernels = cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    filled = memory.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        # The gradients of these two kernels of attention depend on who comes first.
        cuda.enable_mem_efficient_sdp(False)
        cuda.enable_cudnn_sdp(False)
        # A help for finding mistakes, which costs time: nothing here reads what it did not write.
        memory.fill_uninitialized_memory = False
        yield
    finally:
        torch.set_deterministic_debug_mode(algorithms)
        cuda.enable_mem_efficient_sdp(kernels[0])
        cuda.enable_cudnn_sdp(kernels[1])
        memory.fill_uninitialized_memory = filled


def choose_layout(part: TrainConfig, decoder: PreTrainedModel, chooses: bool) -> Layout:
    """The asked layout, or the fastest the base can take. UsageError where it cannot take it."""
    free = decoder.config._attn_implementation == ATTENTION_NAME
    if part.layout != "auto":
        if part.layout != "separate" and not free:
            raise UsageError(
                f"this base ({decoder.config.model_type}) cannot take the layout {part.layout!r}",
                where="train.layout",
                cure="Its attention is its own: use separate, or auto.",
            )
        return part.layout
    return "packed" if free else "separate"


def choose_max_tokens_per_forward(
    part: TrainConfig, decoder: PreTrainedModel, device: torch.device
) -> int:
    """Most tokens in a forward pass: as many of gpt2-small's as the device takes at its best.

    A smaller decoder takes more of them, since what it must remember of each is less.
    """
    if part.tokens_per_forward:
        return part.tokens_per_forward
    config = decoder.config.get_text_config()
    scale = GPT2_SMALL / (config.num_hidden_layers * config.hidden_size)
    most = TOKENS.get(device.type, TOKENS["cpu"])
    return int(most * min(max(scale, 0.5), 4.0))
