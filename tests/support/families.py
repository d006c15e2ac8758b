"""A tiny base of every supported family, with its tokenizer, made on the spot.

Each carries a trap of its real relatives: no pad token (gpt2); a tokenizer that adds a start token
(opt, llama, mistral, gemma3) or pads on the left (llama, mistral, gemma3); embedding rows that no
token uses (qwen3, gpt_neox); weights stored in bfloat16 (mistral); a sliding window shorter than
the texts (gpt_neo, mistral, gemma3); embeddings narrower than the model (opt_narrow); an output
matrix of its own (gpt_neox, llama, mistral).
"""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WIDTH, LAYERS, HEADS, POSITIONS, WINDOW = 32, 2, 4, 96, 8
SENTENCES = (
    "A man in a blue shirt rides a horse over the wet grass near the river.",
    "The committee agreed that nobody had read the second half of the report.",
    "It rained all night, and in the morning the street was covered with leaves.",
    "Who wrote the letter that she found between the pages of the old atlas?",
    "Prices rose by 4.5% in 1998; wages, however, did not follow until 2001.",
    '"Don\'t wait for me," he said, "I\'m going to be late again."',
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
)

_SHAPE = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_LONG = {"max_position_embeddings": POSITIONS}
_GATED = {**_SHAPE, **_LONG, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_GPT = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}
_OPT = {**_SHAPE, **_LONG, "ffn_dim": 48}

CONFIGURATIONS: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, Any]]] = {
    "openai-gpt": (transformers.OpenAIGPTConfig, _GPT),
    "gpt2": (transformers.GPT2Config, _GPT),
    "gpt_neo": (transformers.GPTNeoConfig, {
        "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "intermediate_size": 48,
        "attention_types": [[["global", "local"], 1]], "window_size": WINDOW, **_LONG,
    }),
    "gpt_neox": (transformers.GPTNeoXConfig, {**_SHAPE, **_LONG, "intermediate_size": 48}),
    "opt": (transformers.OPTConfig, {**_OPT, "word_embed_proj_dim": WIDTH}),
    "opt_narrow": (
        transformers.OPTConfig, {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "llama": (transformers.LlamaConfig, _GATED),
    "mistral": (transformers.MistralConfig, {**_GATED, "sliding_window": WINDOW}),
    "qwen3": (transformers.Qwen3Config, {**_GATED, "tie_word_embeddings": True}),
    "gemma3": (transformers.Gemma3TextConfig, {
        **_GATED, "sliding_window": WINDOW, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }),
}  # fmt: skip
FAMILIES = tuple(CONFIGURATIONS)
OWN_ATTENTION = ("openai-gpt", "gpt_neo")
"""Families that keep their own attention and read the layout "separate" only."""
PACKED_ATTENTION = tuple(family for family in FAMILIES if family not in OWN_ATTENTION)

TIED = {"openai-gpt", "gpt2", "gpt_neo", "opt", "opt_narrow", "qwen3", "gemma3"}
"""Families whose output matrix is the embedding table."""
SPARE_ROWS = {"qwen3": 7, "gpt_neox": 13}
"""Embedding rows beyond the tokenizer's last id."""
STORED = {"mistral": torch.bfloat16}
"""The type of the weights on disk, where it is not float32."""

_MARKS: dict[str, dict[str, str]] = {
    "openai-gpt": {"unk_token": "<unk>"},
    "gpt2": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "gpt_neo": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "gpt_neox": {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
    "opt": {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"},
    "opt_narrow": {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"},
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma3": {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"},
}
_ADDS_START = {"opt", "opt_narrow", "llama", "mistral", "gemma3"}
_OWN_TOKENIZER = {"gpt2": transformers.GPT2Tokenizer, "openai-gpt": transformers.OpenAIGPTTokenizer}
_PADS_LEFT = {"llama", "mistral", "gemma3"}


def make(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves a random base of the family, with its tokenizer, as a transformers folder."""
    transformers.utils.logging.disable_progress_bar()
    tokenizer = make_tokenizer(family)
    ids = {f"{name[:-6]}_token_id": tokenizer.convert_tokens_to_ids(text)
           for name, text in _MARKS[family].items() if name != "unk_token"}  # fmt: skip
    config_class, settings = CONFIGURATIONS[family]
    size = len(tokenizer) + SPARE_ROWS.get(family, 0)
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    configuration = config_class(vocab_size=size, **{**settings, **no_ids, **ids})
    model = _draw(configuration, seed).to(STORED.get(family, torch.float32))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _draw(configuration: transformers.PreTrainedConfig, seed: int) -> transformers.PreTrainedModel:
    """Weights large enough that every part matters: no zero bias, no gain of one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(configuration)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.15)
    return model


def make_tokenizer(family: str) -> transformers.PreTrainedTokenizerBase:
    """A trained tokenizer of the family's kind: a few hundred tokens, no S, D or E."""
    core = _word_bpe() if family == "openai-gpt" else _byte_bpe(set(_MARKS[family].values()))
    if family in _ADDS_START:
        start = _MARKS[family]["bos_token"]
        special = [(start, core.token_to_id(start))]
        core.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=special
        )
    settings: dict[str, Any] = {**_MARKS[family], "model_max_length": POSITIONS}
    settings["padding_side"] = "left" if family in _PADS_LEFT else "right"
    if family not in _OWN_TOKENIZER:
        return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **settings)
    pieces = json.loads(core.to_str())["model"]
    merges = [tuple(pair) for pair in pieces["merges"]]
    return _OWN_TOKENIZER[family](vocab=pieces["vocab"], merges=merges, **settings)


def _byte_bpe(marks: set[str]) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it: any text in, the same text out."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=sorted(marks),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    return core


def _word_bpe() -> Tokenizer:
    """BPE over lower-cased words with `</w>` at their ends, as GPT-1 has it; the rest is <unk>."""
    vocabulary, merges = _learn(" ".join(SENTENCES).lower(), 120)
    pieces = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>"
    )
    core = Tokenizer(pieces)
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    return core


def _learn(text: str, count: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and its merges; unlike the library's trainer, always in the same order."""
    words = [[*word[:-1], f"{word[-1]}</w>"] for word in re.findall(r"\w+|[^\w\s]", text)]
    letters = sorted({letter for word in text.split() for letter in word})
    known = ["<unk>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        known.append(left + right)
        for word in words:
            for k in range(len(word) - 2, -1, -1):
                if word[k : k + 2] == [left, right]:
                    word[k : k + 2] = [left + right]
    return {token: k for k, token in enumerate(dict.fromkeys(known))}, merges
