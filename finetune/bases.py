"""The door to pretrained decoders: loading any of them ready for our tokens."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
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

from finetune import attention
from finetune.adapters import adapt
from finetune.network import hub_answers
from finetune.recipe import BasePart
from task_formats import Specials, UsageError

START, DELIMITER, EXTRACT, PAD = "<|start|>", "<|delimiter|>", "<|extract|>", "<|pad|>"
SHIPPED = ("tiny",)

_NOISE = 0.1
"""Spread of new rows round the mean of the old ones, as a part of the old ones' own spread.

What counts is that they differ from each other while their logits stay where an average word's
are (facts, trap 5)."""


@dataclass(frozen=True)
class Lexicon:
    """A tokenizer, and the tokens that the input transforms need."""

    tokenizer: PreTrainedTokenizerBase
    specials: Specials
    pad: int

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts. A text that spells out a special token stays mere text."""
        return tokenize(self.tokenizer, texts)


@dataclass(frozen=True)
class Base:
    """A decoder with its lexicon."""

    decoder: PreTrainedModel
    lexicon: Lexicon

    @property
    def positions(self) -> int | None:
        """The longest view the decoder can read; None where it sets no limit."""
        config = self.decoder.config.get_text_config()
        value = getattr(config, "max_position_embeddings", None) or getattr(
            config, "n_positions", None
        )
        return int(value) if value else None


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


def load_decoder(part: BasePart, seed: int = 0) -> Base:
    """A decoder as the recipe names it, in float32, with start, delimiter, extract and pad tokens.

    New rows of the embedding start at the mean of the old ones plus small noise, or at N(0, 0.02)
    for the paper's own base and for untrained ones. Only safetensors are read.
    Raises UsageError where there is no such base, or none that can be read safely.
    """
    path = locate(part.path)
    options = _options(part, path)
    config = _config(path, part, options)
    lexicon, fresh = _lexicon(path, part, options)
    torch.manual_seed(seed)
    decoder = _decoder(path, part, config, options)
    drawn = part.from_scratch or config.model_type == "openai-gpt"
    _extend(decoder, lexicon.tokenizer, fresh, drawn)
    if part.lora:
        decoder = adapt(decoder, part.lora, list(lexicon.specials))
    return Base(decoder, lexicon)


def load_tokenizer(part: BasePart) -> Lexicon:
    """The base's tokens alone, without its weights. UsageError as in `load_decoder`."""
    path = locate(part.path)
    return _lexicon(path, part, _options(part, path))[0]


def _lexicon(path: str, part: BasePart, options: dict[str, Any]) -> tuple[Lexicon, list[str]]:
    """The lexicon with all our tokens in it, and the names of those that are new."""
    tokenizer = _load(AutoTokenizer.from_pretrained, path, part, options)
    fresh = _add_tokens(tokenizer)
    ids = cast(list[int], tokenizer.convert_tokens_to_ids([START, DELIMITER, EXTRACT]))
    return Lexicon(tokenizer, Specials(*ids), cast(int, tokenizer.pad_token_id)), fresh


def locate(path: str) -> str:
    """A shipped base's folder, a local folder as it is, or a hub id."""
    if path in SHIPPED and not Path(path).exists():
        return str(files("finetune") / "shipped" / path)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or os.sep * 2 in path
    if looks_local and not Path(path).expanduser().is_dir():
        raise UsageError(
            f"no such folder: {path}",
            where="base.path",
            cure="Give a folder made by save_pretrained, a hub id such as gpt2, or tiny.",
        )
    return str(Path(path).expanduser()) if looks_local else path


def _options(part: BasePart, path: str) -> dict[str, Any]:
    local = Path(path).is_dir()
    return {
        "revision": part.revision,
        "trust_remote_code": part.trust_remote_code,
        "local_files_only": local or not hub_answers(),
    }


def _load(loader: Callable[..., Any], path: str, part: BasePart, options: dict[str, Any]) -> Any:
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


def _unloadable(part: BasePart, path: str, error: Exception) -> UsageError:
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
    cure = (
        "Check the folder's files."
        if Path(path).is_dir()
        else "Without a network, give a local folder made by save_pretrained, or --base tiny."
    )
    return UsageError(f"cannot load the base {part.path!r}: {first}", where="base.path", cure=cure)


def _config(path: str, part: BasePart, options: dict[str, Any]) -> PreTrainedConfig:
    config = cast(PreTrainedConfig, _load(AutoConfig.from_pretrained, path, part, options))
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
    path: str, part: BasePart, config: PreTrainedConfig, options: dict[str, Any]
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
    if takes_sight(decoder):
        decoder.set_attn_implementation(attention.NAME)
    return decoder


def _check_complete(part: BasePart, missing: Sequence[str]) -> None:
    """Transformers would draw missing weights at random, and only warn."""
    if missing:
        raise UsageError(
            f"the base {part.path!r} lacks {len(missing)} weights, {missing[0]} among them",
            where="base.path",
            cure="Save the whole model with its language-model head, or train it --from-scratch.",
        )


def takes_sight(decoder: PreTrainedModel) -> bool:
    """True when the decoder's layers can be given our attention, and so any layout."""
    body = inspect.signature(decoder.base_model.forward).parameters
    hands_down = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in body.values())
    return bool(getattr(decoder, "_supports_attention_backend", False)) and hands_down


def _add_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Adds what is missing of our tokens; gives the names of the new ones."""
    known = tokenizer.get_vocab()
    fresh = [token for token in (START, DELIMITER, EXTRACT) if token not in known]
    if fresh:
        tokenizer.add_tokens(fresh, special_tokens=True)
    # A pad token that doubles as another one would be read as text (facts, trap 1).
    others = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token}
    if tokenizer.pad_token is None or tokenizer.pad_token in others:
        fresh += [] if PAD in known else [PAD]
        tokenizer.add_special_tokens({"pad_token": PAD})
    return fresh


def _extend(
    decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, fresh: list[str], drawn: bool
) -> None:
    """Gives every token a row, and the new ones their first values."""
    rows = cast(nn.Embedding, decoder.get_input_embeddings()).weight.shape[0]
    ids = cast(list[int], tokenizer.convert_tokens_to_ids(fresh))
    old = min(ids, default=rows)
    if len(tokenizer) > rows:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for weight in _tables(decoder):
        _initialize(weight.data, ids, old, drawn)


def _tables(decoder: PreTrainedModel) -> list[Tensor]:
    """The embedding and, where it is not the same tensor, the output layer with its bias."""
    embedding = cast(nn.Embedding, decoder.get_input_embeddings()).weight
    output = decoder.get_output_embeddings()
    if output is None or output.weight is embedding:
        return [embedding]
    bias = getattr(output, "bias", None)
    return [embedding, cast(Tensor, output.weight)] + ([] if bias is None else [bias])


def _initialize(table: Tensor, ids: list[int], old: int, drawn: bool) -> None:
    """(V, D) or (V,): rows `ids` drawn from N(0, 0.02), or near the mean of the first `old`."""
    for row in ids:
        if drawn and table.dim() > 1:
            table[row] = 0.02 * torch.randn_like(table[row])
        else:
            mean, spread = table[:old].mean(0), table[:old].std(0)
            table[row] = mean + _NOISE * spread * torch.randn_like(mean)
