"""Frozen base weights in 4 bits (QLoRA), through the optional package bitsandbytes.

The linear layers of the decoder are quantized, as in Dettmers et al. 2023, "QLoRA", section 3:
blocks of 64 weights in the data type NF4, and the scales of the blocks in 8 bits. Embeddings, the
output layer, norms and biases stay in float32, and so does everything that is trained.
"""

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.optional_packages import require_package
from finetune.recipe.schema import BaseConfig
from task_formats import UsageError

# When bitsandbytes is imported, by peft too, it reports that an optional CPU kernel is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

BLOCK = 64
"""Weights that share a scale."""


def require_bitsandbytes(setting: str) -> None:
    """Raises UsageError unless the package that a setting needs is installed."""
    require_package("bitsandbytes", "quantization", "this setting", where=setting)


def is_quantized(decoder: nn.Module) -> bool:
    """Whether a decoder has linear layers in 4 bits; it may be wrapped with adapters."""
    return bool(getattr(decoder, "is_loaded_in_4bit", False))


def count_parameters(model: nn.Module) -> int:
    """Returns the number of weights; those in 4 bits are stored two in a byte."""
    states = ((weight, getattr(weight, "quant_state", None)) for weight in model.parameters())
    return sum(weight.numel() if state is None else state.shape.numel() for weight, state in states)


def is_saved_quantized(architecture: PreTrainedConfig) -> bool:
    """Whether the weights of a base are stored as bitsandbytes quantized them."""
    saved = getattr(architecture, "quantization_config", None) or {}
    if not isinstance(saved, Mapping):
        saved = saved.to_dict()
    return str(saved.get("quant_method")) == "bitsandbytes"


def quantization_options(config: BaseConfig, architecture: PreTrainedConfig) -> dict[str, Any]:
    """Returns the arguments with which `from_pretrained` loads a base in 4 bits, if it shall.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    is_saved = is_saved_quantized(architecture)
    if config.quantization is None and not is_saved:
        return {}
    require_bitsandbytes("base.quantization")
    # By default transformers would move a quantized model to the GPU, unlike all others.
    options: dict[str, Any] = {"device_map": {"": "cpu"}}
    if not is_saved:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=str(config.quantization),
            bnb_4bit_use_double_quant=True,
        )
    return options


def prepare_layers(decoder: PreTrainedModel) -> None:
    """Prepares the layers in 4 bits, if there are any, for training on every device.

    Raises:
        UsageError: The width of a layer is no multiple of the block of weights with one scale.
    """
    if not is_quantized(decoder):
        return
    from bitsandbytes.nn.modules import Linear4bit
    from transformers.integrations.bitsandbytes import Bnb4bitDeserialize

    for name, layer in decoder.named_modules():
        if not isinstance(layer, Linear4bit):
            continue
        if layer.in_features % BLOCK:
            # bitsandbytes 0.50 computes wrong weights of it on a CPU.
            what = f"{name} reads {layer.in_features} numbers, no multiple of {BLOCK}"
            cure = "Train this base without base.quantization."
            raise UsageError(what, where="base.quantization", cure=cure)
        # In evaluation on a CPU it would be packed for kernels in bfloat16 without gradients.
        layer.support_avx512bf16_for_cpu = False
    # transformers cannot revert this one when it saves a decoder that was loaded in 4 bits.
    loaded = cast(Any, decoder)
    loaded._weight_conversions = [
        conversion
        for conversion in getattr(decoder, "_weight_conversions", None) or []
        if not any(isinstance(o, Bnb4bitDeserialize) for o in getattr(conversion, "operations", ()))
    ]


def dequantize_layers(decoder: PreTrainedModel) -> None:
    """Replaces layers in 4 bits by linear layers in float32 that compute the same, in place."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, Linear4bit):
            with torch.device("meta"):
                linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
            weight = dequantize_4bit(layer.weight.data, cast(Any, layer.weight).quant_state)
            linear.weight = nn.Parameter(weight.float(), requires_grad=False)
            linear.bias = layer.bias
            linear.source_cls = layer.source_cls
            decoder.set_submodule(name, linear)
    cast(Any, decoder).hf_quantizer.remove_quantization_config(decoder)
    cast(Any, decoder).is_loaded_in_4bit = False


def restore_conv1d(decoder: PreTrainedModel) -> None:
    """Turns linear layers that were GPT-2's Conv1D before they were quantized back into these."""
    for name, layer in list(decoder.named_modules()):
        if getattr(layer, "source_cls", None) is Conv1D:
            conv = Conv1D(layer.out_features, layer.in_features)
            conv.weight = nn.Parameter(layer.weight.data.T.contiguous(), requires_grad=False)
            conv.bias = layer.bias
            decoder.set_submodule(name, conv)
