"""A small decoder of any causal family that transformers knows."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from finetune.models.pretrained import set_dropout

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
WIDTH, HEADS, LAYERS, POSITIONS, VOCABULARY = 32, 4, 2, 96, 128
WINDOW = 6
"""Shorter than the texts of the tests."""

_SIZES = (
    (WIDTH, """
        attention_hidden_size d_model dim_model_base emb_dim embedding_dim embedding_size
        hidden_size input_embedding_size lru_width mamba_d_ssm n_embd output_embedding_size
        word_embed_proj_dim
     """),
    (LAYERS, """
        decoder_layers encoder_layers n_layer n_layers num_blocks num_decoder_layers
        num_encoder_layers num_hidden_layers num_layers num_layers_per_stack
     """),
    (HEADS, """
        attention_heads decoder_attention_heads encoder_attention_heads index_n_heads
        linear_num_heads linear_num_value_heads mamba_n_heads mamba_num_heads moe_num_experts n_head
        n_heads n_mamba_heads n_routed_experts num_attention_heads num_decoder_attention_heads
        num_encoder_attention_heads num_experts num_heads num_local_experts swa_num_attention_heads
     """),
    (POSITIONS, """
        context_length index_topk keep_window_size max_position_embeddings max_seq_len
        max_target_positions model_max_length n_ctx n_positions original_max_position_embeddings
        rel_extent
     """),
    (WINDOW, """
        attention_chunk_size attention_window_size local_attention sliding_window
        sliding_window_size window_size
     """),
    (VOCABULARY, "unpadded_vocab_size vocab_size vocab_size_per_layer_input"),
    (1, """
        first_k_dense_replace moe_layer_start_index moe_num_shared_experts n_group n_shared_experts
        num_dense_layers num_expert_group num_mem_blocks num_shared_experts topk_group
        zero_expert_num
     """),
    (2, """
        hc_mult heads_per_ngram hidden_size_per_layer_input index_topk_blocks laurel_rank
        layer_group_size linear_num_key_heads mamba_dt_rank mamba_n_groups mamba_ngroups moe_k
        moe_topk n_groups num_experts_per_tok num_experts_per_token num_key_value_heads num_kv_heads
        num_query_groups swa_num_key_value_heads time_step_rank
     """),
    (8, """
        adapter_rank attention_head_dim attention_head_size chunk_size d_head d_rel dim_head
        gated_norm_rank hc_lowrank head_dim index_block_size index_head_dim kv_channels kv_lora_rank
        linear_head_dim linear_key_head_dim linear_value_head_dim mamba_chunk_size mamba_d_head
        mamba_d_state mamba_head_dim mamba_headdim o_lora_rank q_lora_rank qk_nope_head_dim
        qk_rope_head_dim query_pre_attn_scalar rotary_dim router_hidden_size ssm_state_size
        state_size swa_head_dim v_head_dim
     """),
    (16, "qk_head_dim"),
    (48, """
        d_inner decoder_ffn_dim dense_intermediate_size dff dim_ff encoder_ffn_dim
        expert_ffn_hidden_size feed_forward_size ffn_dim ffn_hidden_size intermediate_size
        intermediate_size_mlp moe_intermediate_size moe_shared_expert_intermediate_size
        shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size
     """),
)  # fmt: skip
_SMALL = {name: size for size, names in _SIZES for name in names.split()}
_TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8}
_ZAMBA = {
    "num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "attention_head_dim": 16, "attention_hidden_size": 64,
}  # fmt: skip
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 2, "rope_parameters": {"full_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 48, "hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2,
        },
    },
    "gemma3n_text": {
        "num_hidden_layers": 6, "num_kv_shared_layers": 2, "intermediate_size": 48,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "activation_sparsity_pattern": [0.5] * 6,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"rope_parameters": _ROPE},
    "hunyuan_v1_moe": {"rope_parameters": _ROPE},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {
        "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "moe_layers": [1, 3],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
    },
    "mamba2": {"num_heads": 8},
    "roc_bert": {
        "pronunciation_vocab_size": 32, "pronunciation_embed_dim": 16, "shape_vocab_size": 32,
        "shape_embed_dim": 16, "concat_input": False,
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "mamba_headdim": 8, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Settings of families that the rules of `build` do not fit."""


class NotBuiltError(Exception):
    """There is no small decoder of a family. The message is the reason."""


def build(family: str) -> PreTrainedConfig:
    """The default configuration of a family, shrunk, with each kind of layer at least once."""
    fields = AutoConfig.for_model(family).to_dict()
    settings: dict[str, Any] = {name: _SMALL[name] for name in fields if name in _SMALL}
    if "kv_lora_rank" in fields:
        settings["num_key_value_heads"] = HEADS
    settings |= {name: _TOKEN_IDS.get(name, 3) for name in fields if name.endswith("_token_id")}
    lists = {name: fields[name] for name in _LAYER_LISTS if isinstance(fields.get(name), list)}
    kinds = {name: list(dict.fromkeys(values)) for name, values in lists.items()}
    layers = max([LAYERS, *map(len, kinds.values())])
    for name, values in kinds.items():
        settings[name] = [*values, *[values[-1]] * (layers - len(values))]
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if name in settings:
            settings[name] = layers
    if "is_decoder" in fields or fields.get("is_encoder_decoder"):
        settings |= {"is_decoder": True, "is_encoder_decoder": False}
    return AutoConfig.for_model(family, **settings | _EXCEPTIONS.get(family, {}))


def draw(family: str) -> PreTrainedModel:
    """A small decoder without dropout, with weights so large that every part matters.

    Raises:
        NotBuiltError: It reads more than text, or its configuration could not be shrunk.
    """
    if family == "reformer":
        raise NotBuiltError("its own code trains on texts of one length only")
    try:
        config = build(family)
        is_text = config.get_text_config() is config
        set_dropout(config, 0.0)
        with torch.device("meta"):
            shape = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # Families check their settings in many ways.
        raise NotBuiltError("no small configuration") from error
    if not is_text:
        raise NotBuiltError("not only text")
    if sum(weight.numel() for weight in shape.parameters()) > 1_000_000:
        raise NotBuiltError("no small configuration")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for weight in decoder.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.15)
    return decoder
