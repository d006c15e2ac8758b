"""The door to pretrained decoders: loading any of them ready for our tokens."""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from finetune.data.network import hub_answers
from finetune.models.attention import interface as attention
from finetune.models.base_paths import find_base, locate_whole
from finetune.models.lora import add_adapters
from finetune.models.speedups.activations import replace_modules
from finetune.models.speedups.last_token import enable_last_token_shortcut
from finetune.models.task_tokens import DELIMITER, EXTRACT, START, add_embedding_rows, add_tokens
from finetune.recipe.schema import BaseConfig, Recipe
from task_formats import SpecialTokens, Task, UsageError, ViewEncoder


@dataclass(frozen=True)
class TaskTokens:
    """A tokenizer, and the tokens that the input transforms need."""

    tokenizer: PreTrainedTokenizerBase
    special_tokens: SpecialTokens
    pad_id: int

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts. A text that spells out a special token stays mere text."""
        return tokenize(self.tokenizer, texts)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the tokenizer; None for one written in Python, which has no serial form."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return None if backend is None else hashlib.sha256(backend.to_str().encode()).hexdigest()


@dataclass(frozen=True)
class Base:
    """A decoder with its task_tokens."""

    decoder: PreTrainedModel
    task_tokens: TaskTokens

    @property
    def max_positions(self) -> int | None:
        """The longest view the decoder can read; None where it sets no limit."""
        return count_positions(self.decoder)


def build_encoder(recipe: Recipe, task: Task, base: Base) -> ViewEncoder:
    """The encoder of a task's views over the base's tokens.

    Raises UsageError where `train.max_tokens` exceeds the decoder's positions.
    """
    max_tokens, positions = recipe.train.max_tokens, base.max_positions
    if positions is not None and max_tokens > positions:
        raise UsageError(
            f"max_tokens {max_tokens} is more than the base's {positions} positions",
            where="train.max_tokens",
            cure=f"Pass --max-tokens {positions}.",
        )
    tokens = base.task_tokens
    return ViewEncoder(task.format, tokens.tokenize, tokens.special_tokens, max_tokens)


DEFAULT_CONTEXT = 2048
"""Tokens that are read at once by a decoder that sets no limit."""


def count_positions(decoder: PreTrainedModel) -> int | None:
    """The longest text a decoder can read, in tokens; None where it sets no limit."""
    config = decoder.config.get_text_config()
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def find_special_token(tokenizer: PreTrainedTokenizerBase, *names: str) -> int | None:
    """The id of the first of some special tokens (bos, eos, pad) that there is, else of unk."""
    ids = (getattr(tokenizer, f"{name}_token_id") for name in (*names, "unk"))
    return next((token for token in ids if isinstance(token, int)), None)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts at once, on all cores, without any special token."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return cast(list[list[int]], encoded["input_ids"])


def load_decoder(part: BaseConfig, seed: int = 0) -> Base:
    """A decoder as the recipe names it, in float32, with start, delimiter, extract and pad tokens.

    New rows of the embedding start at the mean of the old ones plus small noise, or at N(0, 0.02)
    for the paper's own base and for untrained ones. Only safetensors are read.
    Raises UsageError where there is no such base, or none that can be read safely.
    """
    path = locate_whole(part)
    options = _options(part, path)
    config = _config(path, part, options)
    task_tokens, fresh = _lexicon(path, part, options)
    torch.manual_seed(seed)
    decoder = _decoder(path, part, config, options)
    drawn = part.from_scratch or config.model_type == "openai-gpt"
    add_embedding_rows(decoder, task_tokens.tokenizer, fresh, drawn)
    if part.lora:
        decoder = add_adapters(decoder, part.lora, list(task_tokens.special_tokens))
    return Base(decoder, task_tokens)


def load_language_model(part: BaseConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder and its tokenizer as they are, in float32, none of our tokens added.

    So it predicts plain text: a token more would take probability from all others.
    UsageError as in `load_decoder`.
    """
    path = locate_whole(part)
    options = _options(part, path)
    config = _config(path, part, options)
    return _decoder(path, part, config, options), load_base_tokenizer(part)


def load_base_tokenizer(part: BaseConfig) -> PreTrainedTokenizerBase:
    """A base's tokenizer as it is. UsageError as in `load_decoder`."""
    path = find_base(part.path)
    options = _options(part, path)
    return cast(PreTrainedTokenizerBase, _load(AutoTokenizer.from_pretrained, path, part, options))


def load_task_tokens(part: BaseConfig) -> TaskTokens:
    """The base's tokens alone, without its weights. UsageError as in `load_decoder`."""
    path = find_base(part.path)
    return _lexicon(path, part, _options(part, path))[0]


def _lexicon(path: str, part: BaseConfig, options: dict[str, Any]) -> tuple[TaskTokens, list[str]]:
    """The task_tokens with all our tokens in it, and the names of those that are new."""
    tokenizer = _load(AutoTokenizer.from_pretrained, path, part, options)
    fresh = add_tokens(tokenizer)
    ids = cast(list[int], tokenizer.convert_tokens_to_ids([START, DELIMITER, EXTRACT]))
    return TaskTokens(tokenizer, SpecialTokens(*ids), cast(int, tokenizer.pad_token_id)), fresh


def _options(part: BaseConfig, path: str) -> dict[str, Any]:
    local = Path(path).is_dir()
    return {
        "revision": part.revision,
        "trust_remote_code": part.trust_remote_code,
        "local_files_only": local or not hub_answers(),
    }


def _load(loader: Callable[..., Any], path: str, part: BaseConfig, options: dict[str, Any]) -> Any:
    """Calls one of transformers' loaders, and says what went wrong in one sentence."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return loader(path, **{key: value for key, value in options.items() if value is not None})
    except Exception as error:  # Damaged files make its parsers raise exceptions of every kind.
        raise _unloadable(part, path, error) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _unloadable(part: BaseConfig, path: str, error: Exception) -> UsageError:
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return UsageError(
            f"the base {part.path!r} needs Python code that comes with it",
            where="base.path",
            cure="If you trust its source, pass --trust-remote-code.",
        )
    if "safetensors" in text and Path(path).is_dir() and not list(Path(path).glob("*.safetensors")):
        return UsageError(
            f"the base {part.path!r} has no model.safetensors",
            where="base.path",
            cure="Only safetensors are read. Convert it: load it once with transformers and "
            "save_pretrained it.",
        )
    first = next(line for line in text.splitlines() if line.strip())
    cure = "Check the folder's files."
    if not Path(path).is_dir():
        first = f"there is no such folder here, and asking the hub failed: {first}"
        cure = "Without a network, give a local folder made by save_pretrained, or --base tiny."
    return UsageError(f"cannot load the base {part.path!r}: {first}", where="base.path", cure=cure)


def _config(path: str, part: BaseConfig, options: dict[str, Any]) -> PreTrainedConfig:
    config = cast(PreTrainedConfig, _load(AutoConfig.from_pretrained, path, part, options))
    # Code of a hub, which transformers would fetch and run: attention: owner/kernel.
    named = [str(c._attn_implementation) for c in (config, config.get_text_config())]
    if not part.trust_remote_code and any("/" in name for name in named):
        raise UsageError(
            f"the base {part.path!r} asks for attention code of a hub: {named[0]}",
            where="base.path",
            cure="Remove attn_implementation from its config.json, or pass --trust-remote-code.",
        )
    # BERT and its kin can be loaded as decoders, but learned to look both ways.
    encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", 0)
    if encoder or getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"the base {part.path!r} ({config.model_type}) has an encoder, it is no causal decoder",
            where="base.path",
            cure="Take a decoder such as gpt2.",
        )
    if part.dropout is not None:
        set_dropout(config, part.dropout)
    return config


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Every dropout that the configuration knows, set to one probability (GPT-1: 0.1)."""
    text = config.get_text_config()
    for name, value in vars(text).items():
        named = "dropout" in name or name.endswith("pdrop")
        if named and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(text, name, probability)


def _decoder(
    path: str, part: BaseConfig, config: PreTrainedConfig, options: dict[str, Any]
) -> PreTrainedModel:
    if part.from_scratch:
        trust = {"trust_remote_code": part.trust_remote_code}
        made = _load(
            lambda _, **kw: AutoModelForCausalLM.from_config(config, **kw), path, part, trust
        )
        decoder = cast(PreTrainedModel, made.float())
    else:
        wanted = {"config": config, "dtype": torch.float32, "use_safetensors": True}
        wanted["output_loading_info"] = True
        found = _load(AutoModelForCausalLM.from_pretrained, path, part, {**options, **wanted})
        decoder, info = cast(tuple[PreTrainedModel, dict[str, Any]], found)
        _check_complete(part, sorted(info["missing_keys"]))
    return optimize_decoder(decoder)


def _check_complete(part: BaseConfig, missing: Sequence[str]) -> None:
    """Transformers would draw missing weights at random, and only warn."""
    if missing:
        raise UsageError(
            f"the base {part.path!r} lacks {len(missing)} weights, {missing[0]} among them",
            where="base.path",
            cure="Save the whole model with its language-model head, or train it --from-scratch.",
        )


def optimize_decoder(decoder: PreTrainedModel) -> PreTrainedModel:
    """The decoder with quicker parts, and with our attention where it can be given it."""
    replace_modules(decoder)
    if supports_packed_attention(decoder):
        decoder.set_attn_implementation(attention.ATTENTION_NAME)
        enable_last_token_shortcut(decoder)
    return decoder


def supports_packed_attention(decoder: PreTrainedModel) -> bool:
    """True when the decoder's layers can be given our attention, and so any layout."""
    body = inspect.signature(decoder.base_model.forward).parameters
    hands_down = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in body.values())
    return bool(getattr(decoder, "_supports_attention_backend", False)) and hands_down
