"""Writes the tiny bases of `families` as GGUF files, as llama.cpp's converter does."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""GPT-2 keeps these as (inputs, outputs)."""


def write_gguf(
    base: Path,
    file: Path,
    *,
    quantized: bool = False,
    architecture: str | None = None,
    omit: str | None = None,
    scaled: str | None = None,
) -> transformers.PreTrainedModel:
    """Writes a base of the family gpt2 or llama, and returns the decoder that is in the file.

    Args:
        base: Folder of the base.
        file: GGUF file to write.
        quantized: Write matrices in 8 bits; the returned decoder has their rounded values.
        architecture: Name of another architecture to write into the file.
        omit: Name of a tensor that is left out.
        scaled: Mark the rotary frequencies as scaled: by a "field" or a "tensor".
    """
    decoder = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = decoder.config
    name = architecture or config.model_type
    writer = gguf.GGUFWriter(file, name)
    _write_shape(writer, config)
    _write_tokenizer(writer, base)
    if scaled == "field":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    if scaled == "tensor":
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
    kind = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}[config.model_type]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for weight_name, weight in decoder.named_parameters():
        stem, _, suffix = weight_name.rpartition(".")
        target = f"{names.get_name(stem)}.{suffix}"
        if target == omit:
            continue
        values = _arrange(weight_name, weight.detach().numpy(), config)
        kind = gguf.GGMLQuantizationType.F32
        if quantized and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quantize(values, kind)
            rounded = _arrange(weight_name, gguf.dequantize(values, kind), config, back=True)
            weight.data = torch.from_numpy(np.ascontiguousarray(rounded))
        writer.add_tensor(target, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    decoder.tie_weights()
    return decoder


def _write_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _write_tokenizer(writer: gguf.GGUFWriter, base: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    types = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([types.CONTROL if t in special else types.NORMAL for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


def _arrange(name: str, weight: np.ndarray, config: Any, back: bool = False) -> np.ndarray:
    """From the order of transformers to that of llama.cpp, or back."""
    if config.model_type == "gpt2":
        return weight.T if name.endswith(_TRANSPOSED) else weight
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None:
        return weight
    half = weight.shape[0] // count // 2
    shape = (count, half, 2) if back else (count, 2, half)
    return weight.reshape(*shape, -1).swapaxes(1, 2).reshape(weight.shape)
