"""Loads any pretrained decoder of transformers, ready for the tokens of the input transforms."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
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

from finetune.data.hub import is_hub_reachable
from finetune.models.lora import add_adapters
from finetune.models.speedups.optimize import optimize_decoder
from finetune.models.task_tokens import TaskTokens, add_embedding_rows
from finetune.recipe.schema import BaseConfig, Recipe
from task_formats import Task, UsageError, ViewEncoder

SHIPPED_BASES = ("tiny",)
DEFAULT_CONTEXT = 2048
"""Tokens that are read at once by a decoder that sets no limit."""


@dataclass(frozen=True)
class Base:
    """A decoder with its tokens."""

    decoder: PreTrainedModel
    task_tokens: TaskTokens

    @property
    def max_positions(self) -> int | None:
        """The longest view in tokens that the decoder can read; None without a limit."""
        return count_positions(self.decoder)


def build_encoder(recipe: Recipe, task: Task, base: Base) -> ViewEncoder:
    """Builds the encoder of a task's views over the tokens of a base.

    Raises:
        UsageError: `train.max_tokens` exceeds the decoder's positions.
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


def count_positions(decoder: PreTrainedModel) -> int | None:
    """The longest text in tokens that a decoder can read; None without a limit."""
    config = decoder.config.get_text_config()
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def load_decoder(config: BaseConfig, seed: int = 0) -> Base:
    """Loads a base in float32 and adds the start, delimiter, extract and pad tokens.

    New embedding rows start at the mean of the old rows plus small noise; for GPT-1's own base and
    with `from_scratch` they are drawn from N(0, 0.02), as in the paper. Only safetensors are read.

    Args:
        config: The `base` section of a recipe.
        seed: Decides new rows, weights drawn `from_scratch`, and adapters.

    Raises:
        UsageError: The base does not exist, is no causal decoder, or cannot be read safely.
    """
    path = find_base(config.path)
    options = _hub_options(config, path)
    architecture = _load_architecture(path, config, options)
    task_tokens, new_tokens = _load_task_tokens(path, config, options)
    torch.manual_seed(seed)
    decoder = _load_weights(path, config, architecture, options)
    random = config.from_scratch or architecture.model_type == "openai-gpt"
    add_embedding_rows(decoder, task_tokens.tokenizer, new_tokens, random=random)
    if config.lora:
        decoder = add_adapters(decoder, config.lora, list(task_tokens.special_tokens))
    return Base(decoder, task_tokens)


def load_language_model(config: BaseConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a decoder in float32 and its tokenizer as they are, without our tokens.

    Added tokens would take probability from those that the model learned to predict.

    Raises:
        UsageError: As in `load_decoder`.
    """
    path = find_base(config.path)
    options = _hub_options(config, path)
    architecture = _load_architecture(path, config, options)
    return _load_weights(path, config, architecture, options), load_base_tokenizer(config)


def load_base_tokenizer(config: BaseConfig) -> PreTrainedTokenizerBase:
    """Loads a base's tokenizer as it is. Raises UsageError as `load_decoder` does."""
    path = find_base(config.path)
    load = AutoTokenizer.from_pretrained
    return cast(PreTrainedTokenizerBase, _load(load, path, config, _hub_options(config, path)))


def load_task_tokens(config: BaseConfig) -> TaskTokens:
    """Loads a base's tokens without its weights. Raises UsageError as `load_decoder` does."""
    path = find_base(config.path)
    return _load_task_tokens(path, config, _hub_options(config, path))[0]


def find_base(path: str) -> str:
    """Resolves the name of a base.

    Args:
        path: A shipped base, a folder made by `save_pretrained`, a run directory, or a hub id.

    Returns:
        The folder that holds the model, or the hub id.

    Raises:
        UsageError: The path is empty or a file, the folder does not exist or holds adapters only.
    """
    if path in SHIPPED_BASES and not Path(path).exists():
        return str(files("finetune") / "shipped" / path)
    folder = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or os.sep * 2 in path
    problem = None
    if not path:
        problem = "no base is named"
    elif folder.is_file():
        problem = f"{path} is a file"
    elif looks_local and not folder.is_dir():
        problem = f"no such folder: {path}"
    if problem:
        raise UsageError(
            problem,
            where="base.path",
            cure="Give a folder made by save_pretrained, a hub id such as gpt2, or tiny.",
        )
    if not folder.is_dir():
        return path
    if (folder / "adapter_config.json").exists():
        # transformers would look for the other base by itself.
        raise UsageError(
            f"{path} holds adapters for another base",
            where="base.path",
            cure="Merge them with peft's merge_and_unload and save the whole model.",
        )
    is_run = (folder / "model" / "config.json").is_file() and not (folder / "config.json").exists()
    return str(folder / "model" if is_run else folder)


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Sets every dropout of a configuration to one probability (GPT-1: 0.1)."""
    text_config = config.get_text_config()
    for name, value in vars(text_config).items():
        is_dropout = "dropout" in name or name.endswith("pdrop")
        if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(text_config, name, probability)


def _hub_options(config: BaseConfig, path: str) -> dict[str, Any]:
    return {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": Path(path).is_dir() or not is_hub_reachable(),
    }


def _load(
    loader: Callable[..., Any], path: str, config: BaseConfig, options: dict[str, Any]
) -> Any:
    """Calls a loader of transformers without its progress bar; any failure is a UsageError."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return loader(path, **{key: value for key, value in options.items() if value is not None})
    except Exception as error:  # Damaged files raise exceptions of every kind in its parsers.
        raise _loading_error(config, path, error) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _loading_error(config: BaseConfig, path: str, error: Exception) -> UsageError:
    text = str(error).strip() or type(error).__name__
    is_folder = Path(path).is_dir()
    if "trust_remote_code" in text:
        return UsageError(
            f"the base {config.path!r} needs Python code that comes with it",
            where="base.path",
            cure="If you trust its source, pass --trust-remote-code.",
        )
    if "safetensors" in text and is_folder and not list(Path(path).glob("*.safetensors")):
        return UsageError(
            f"the base {config.path!r} has no model.safetensors",
            where="base.path",
            cure="Only safetensors are read. Load it with transformers and save_pretrained it.",
        )
    reason = next(line for line in text.splitlines() if line.strip())
    cure = "Check the folder's files."
    if not is_folder:
        reason = f"no such folder, and the hub failed: {reason}"
        cure = "Without a network, give a local folder made by save_pretrained, or --base tiny."
    return UsageError(
        f"cannot load the base {config.path!r}: {reason}", where="base.path", cure=cure
    )


def _load_architecture(path: str, config: BaseConfig, options: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a causal decoder, with the recipe's dropout."""
    found = cast(PreTrainedConfig, _load(AutoConfig.from_pretrained, path, config, options))
    # An attention implementation owner/kernel is code that transformers would fetch and run.
    attention = [str(c._attn_implementation) for c in (found, found.get_text_config())]
    if not config.trust_remote_code and any("/" in name for name in attention):
        raise UsageError(
            f"the base {config.path!r} asks for attention code from the hub: {attention[0]}",
            where="base.path",
            cure="Remove attn_implementation from its config.json, or pass --trust-remote-code.",
        )
    # transformers loads BERT and its relatives as decoders, but they learned to look both ways.
    encoder = type(found) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(found, "is_decoder", 0)
    if encoder or getattr(found, "is_encoder_decoder", False):
        raise UsageError(
            f"{config.path!r} ({found.model_type}) has an encoder, it is no causal decoder",
            where="base.path",
            cure="Use a decoder such as gpt2.",
        )
    if config.dropout is not None:
        set_dropout(found, config.dropout)
    return found


def _load_task_tokens(
    path: str, config: BaseConfig, options: dict[str, Any]
) -> tuple[TaskTokens, list[str]]:
    return TaskTokens.add_to(_load(AutoTokenizer.from_pretrained, path, config, options))


def _load_weights(
    path: str, config: BaseConfig, architecture: PreTrainedConfig, options: dict[str, Any]
) -> PreTrainedModel:
    if config.from_scratch:

        def draw(_: str, **options: Any) -> Any:
            return AutoModelForCausalLM.from_config(architecture, **options)

        trust = {"trust_remote_code": config.trust_remote_code}
        drawn = _load(draw, path, config, trust)
        return optimize_decoder(cast(PreTrainedModel, drawn.float()))
    options = {
        **options,
        "config": architecture,
        "dtype": torch.float32,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    loaded = _load(AutoModelForCausalLM.from_pretrained, path, config, options)
    decoder, info = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    _check_complete(config, sorted(info["missing_keys"]))
    return optimize_decoder(decoder)


def _check_complete(config: BaseConfig, missing: Sequence[str]) -> None:
    """Transformers only warns of missing weights, and draws them at random."""
    if missing:
        raise UsageError(
            f"the base {config.path!r} lacks {len(missing)} weights, including {missing[0]}",
            where="base.path",
            cure="Save the whole model with its language-model head, or train it --from-scratch.",
        )
