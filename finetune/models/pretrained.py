"""Loads any pretrained decoder of transformers, ready for the tokens of the input transforms."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

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
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file

from finetune.data.hub import download_files, is_hub_reachable
from finetune.models.attention.check import has_linear_output
from finetune.models.decoder import find_body
from finetune.models.gguf_files import convert_gguf, find_gguf_file
from finetune.models.lora import add_adapters
from finetune.models.quantization import (
    is_saved_quantized,
    prepare_layers,
    quantization_options,
)
from finetune.models.speedups.optimize import optimize_decoder
from finetune.models.task_tokens import TaskTokens, add_embedding_rows
from finetune.recipe.schema import BaseConfig, Recipe
from task_formats import Task, UsageError, ViewEncoder

DEFAULT_CONTEXT = 2048
"""Tokens that are read at once by a decoder that sets no limit."""

_STORED_BUFFERS = re.compile(
    r"(^|\.)((self_)?att(entio)?n\.(masked_)?bias|causal_mask|inv_freq|position_ids)$"
)
"""Masks and positions, which older versions of transformers saved with the weights."""

OutputLayer = Literal["linear", "other", "missing"]
"""How a decoder makes logits of its states: by one linear map, which a scale and a cap may follow;
in another way; or not at all. Only with the first an LM loss can be computed."""


@dataclass(frozen=True)
class Base:
    """A decoder with its tokens."""

    decoder: PreTrainedModel
    task_tokens: TaskTokens
    output: OutputLayer = "linear"


def build_encoder(recipe: Recipe, task: Task, base: Base) -> ViewEncoder:
    """Builds the encoder of a task's views over the tokens of a base.

    Raises:
        UsageError: `train.max_tokens` exceeds the decoder's positions.
    """
    max_tokens, positions = recipe.train.max_tokens, count_positions(base.decoder)
    if positions is not None and max_tokens > positions:
        raise UsageError(
            f"max_tokens {max_tokens} is more than the base's {positions} positions",
            where="train.max_tokens",
            cure=f"Pass --max-tokens {positions}.",
        )
    tokens = base.task_tokens
    specials = tokens.special_tokens
    return ViewEncoder(task.format, tokens.tokenize, specials, max_tokens, task.windows)


def count_positions(decoder: PreTrainedModel) -> int | None:
    """The longest text in tokens that a decoder can read; None without a limit."""
    config = decoder.config.get_text_config()
    value = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(value) if value else None


def load_decoder(config: BaseConfig, seed: int = 0, *, allow_quantized: bool = False) -> Base:
    """Loads a base in float32 and adds the start, delimiter, extract and pad tokens.

    New embedding rows start as `config.new_tokens` says; for GPT-1's own base and with
    `from_scratch` they are drawn from N(0, 0.02), as in the paper. Only safetensors are read.
    With `config.quantization` the linear layers are in 4 bits.

    Args:
        config: The base.
        seed: Decides new rows, weights drawn `from_scratch`, and adapters.
        allow_quantized: Whether the base may be one that was saved in 4 bits.

    Raises:
        UsageError: The base does not exist, is no causal decoder, or cannot be read safely.
    """
    source = _Source(config, allow_quantized)
    architecture = source.architecture()
    task_tokens, new_tokens = TaskTokens.add_to(source.tokenizer())
    torch.manual_seed(seed)
    decoder, output = source.decoder(architecture)
    is_gpt1 = architecture.model_type == "openai-gpt"
    start = "random" if config.from_scratch or is_gpt1 else config.new_tokens
    add_embedding_rows(decoder, task_tokens.tokenizer, new_tokens, start)
    if config.lora:
        decoder = add_adapters(decoder, config.lora, list(task_tokens.special_tokens))
    return Base(decoder, task_tokens, output)


def load_language_model(config: BaseConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a decoder in float32 and its tokenizer as they are, without our tokens.

    Added tokens would take probability from those that the model learned to predict.
    Raises UsageError as `load_decoder` does.
    """
    source = _Source(config)
    decoder, output = source.decoder(source.architecture())
    check_output_layer(output, "base.path", "Use another base, such as gpt2.")
    return decoder, source.tokenizer()


def check_output_layer(output: OutputLayer, where: str, cure: str) -> None:
    """Raises UsageError, with the place and the cure, unless an LM loss can be computed."""
    if output != "linear":
        reason = "has no output layer"
        if output == "other":
            reason = "does not make its logits by one linear layer"
        what = f"this base {reason}, so its language-model loss cannot be computed"
        raise UsageError(what, where=where, cure=cure)


def load_base_tokenizer(config: BaseConfig) -> PreTrainedTokenizerBase:
    """Loads a base's tokenizer as it is. Raises UsageError as `load_decoder` does."""
    return _Source(config).tokenizer()


def load_task_tokens(config: BaseConfig) -> TaskTokens:
    """Loads a base's tokens without its weights. Raises UsageError as `load_decoder` does."""
    return TaskTokens.add_to(_Source(config).tokenizer())[0]


def find_base(path: str) -> str:
    """Returns the folder of a shipped base, a saved model, a run or a GGUF file; or the hub id.

    A GGUF file is dequantized when it is used for the first time.

    Raises:
        UsageError: The folder does not exist or holds adapters only; the file cannot be read.
    """
    if path == "tiny" and not Path(path).exists():
        return str(files("finetune") / "shipped" / path)
    if path and (file := find_gguf_file(path)):
        return str(convert_gguf(file))
    folder = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.is_absolute()
    if not path or folder.is_file() or (looks_local and not folder.is_dir()):
        raise UsageError(
            f"no such folder: {path}",
            where="base.path",
            cure="Give a folder made by save_pretrained, a GGUF file, a hub id as gpt2, or tiny.",
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


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Hides the progress bars of transformers in the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def set_dropout(config: PreTrainedConfig, probability: float) -> None:
    """Sets every dropout of a configuration to one probability (GPT-1: 0.1)."""
    text_config = config.get_text_config()
    for name, value in vars(text_config).items():
        is_dropout = "dropout" in name or name.endswith("pdrop")
        if is_dropout and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(text_config, name, probability)


class _Source:
    """A base on disk or on the hub. Whatever fails to load is a UsageError."""

    def __init__(self, config: BaseConfig, allow_quantized: bool = False) -> None:
        self.config, self.path = config, find_base(config.path)
        self.allow_quantized = allow_quantized
        self.is_folder = Path(self.path).is_dir()
        self.options = {
            "revision": config.revision,
            "trust_remote_code": config.trust_remote_code,
            "local_files_only": self.is_folder or not is_hub_reachable(),
        }

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """As the base has it."""
        return cast(PreTrainedTokenizerBase, self._load(AutoTokenizer.from_pretrained))

    def architecture(self) -> PreTrainedConfig:
        """The configuration of a causal decoder, with the recipe's dropout."""
        config = cast(PreTrainedConfig, self._load(AutoConfig.from_pretrained))
        # An attention implementation owner/kernel is code that transformers would fetch and run.
        attention = f"{config._attn_implementation} {config.get_text_config()._attn_implementation}"
        if "/" in attention and not self.config.trust_remote_code:
            raise self._error(
                f"it asks for attention code from the hub ({attention})",
                "Remove attn_implementation from its config.json, or pass --trust-remote-code.",
            )
        # transformers loads BERT and its relatives as decoders, but they learned to look both ways.
        encoder_only = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(
            config, "is_decoder", False
        )
        if encoder_only or config.is_encoder_decoder:
            raise self._error(
                f"{config.model_type} has an encoder, it is no causal decoder",
                "Use a decoder such as gpt2.",
            )
        if is_saved_quantized(config) and not self.allow_quantized:
            raise self._error(
                "its weights are quantized",
                "Give the base that was quantized, with base.quantization. A run in 4 bits is made "
                "whole by gptft export --to standalone.",
            )
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if isinstance(layers, int) and layers < 1:
            raise self._error(f"it has {layers} layers", "Correct its config.json.")
        if self.config.dropout is not None:
            set_dropout(config, self.config.dropout)
        return config

    def decoder(self, architecture: PreTrainedConfig) -> tuple[PreTrainedModel, OutputLayer]:
        """Weights in float32 or, where the recipe says so, in 4 bits; or drawn from scratch."""
        if self.config.from_scratch:
            trust = self.config.trust_remote_code
            draw = partial(AutoModelForCausalLM.from_config, trust_remote_code=trust)
            drawn = self._load(lambda _, **options: draw(architecture))
            return self._optimize(cast(PreTrainedModel, drawn.float()))
        self._check_weight_files(architecture)
        self._download_weights()
        decoder, info = self._load(
            AutoModelForCausalLM.from_pretrained,
            config=architecture,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **quantization_options(self.config, architecture),
        )
        prepare_layers(decoder)
        # transformers only warns of missing weights, which it draws at random, and of unused ones.
        missing = sorted(info["missing_keys"])
        body = {id(weight) for weight in find_body(decoder).state_dict(keep_vars=True).values()}
        weights = decoder.state_dict(keep_vars=True)
        if any(id(weights.get(name)) in body for name in missing):
            raise self._error(
                f"{len(missing)} weights are missing, including {missing[0]}",
                "Save the whole model again, or train it --from-scratch.",
            )
        if unused := _find_unused_weights(decoder, info["unexpected_keys"]):
            raise self._error(
                f"{len(unused)} weights have no place in its configuration, including {unused[0]}",
                "Restore the config.json that was saved with the weights.",
            )
        return self._optimize(cast(PreTrainedModel, decoder), has_output_layer=not missing)

    def _optimize(
        self, decoder: PreTrainedModel, has_output_layer: bool = True
    ) -> tuple[PreTrainedModel, OutputLayer]:
        output: OutputLayer = "missing"
        try:
            if has_output_layer:
                output = "linear" if has_linear_output(decoder) else "other"
            return optimize_decoder(decoder), output
        except UsageError:
            raise
        except Exception as error:  # Its code may refuse token ids in any way.
            text = str(error).strip() or type(error).__name__
            reason = f"it cannot read a text: {text.splitlines()[0]}"
            raise self._error(reason, "Check its config.json, or use another base.") from error

    def _check_weight_files(self, architecture: PreTrainedConfig) -> None:
        """Raises UsageError unless all weights are safetensors files beside config.json.

        The index of a sharded base may name any file, and transformers would unpickle it.
        """
        chosen = getattr(architecture, "transformers_weights", None)
        for name in [chosen] if chosen else sorted(self._load(_list_shards)):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise self._error(
                    f"the file of weights {name!r} is no safetensors file of its folder",
                    "Save it with save_pretrained, as safetensors files in one folder.",
                )

    def _download_weights(self) -> None:
        """Downloads what is not in the cache yet, which transformers would do without a display."""
        if self.options["local_files_only"]:
            return
        with suppress(Exception):  # Loading will say what is wrong.
            names = self._load(_list_shards) or {SAFE_WEIGHTS_NAME}
            download_files(self.path, sorted(names), self.config.revision)

    def _load(self, loader: Callable[..., Any], **options: Any) -> Any:
        """Calls a loader of transformers without its progress bar."""
        options |= {name: value for name, value in self.options.items() if value is not None}
        try:
            with without_progress_bar():
                return loader(self.path, **options)
        except Exception as error:  # Damaged files raise exceptions of every kind in its parsers.
            text = str(error).strip() or type(error).__name__
            reason, cure = text.splitlines()[0], "Check the folder's files."
            if "trust_remote_code" in text:
                reason = "it needs Python code that comes with it"
                cure = "If you trust its source, pass --trust-remote-code."
            elif not self.is_folder:
                reason = f"no such folder, and the hub failed: {reason}"
                cure = "Without a network, give a folder made by save_pretrained, or --base tiny."
            raise self._error(reason, cure) from error

    def _error(self, reason: str, cure: str) -> UsageError:
        what = f"cannot load the base {self.config.path!r}: {reason}"
        return UsageError(what, where="base.path", cure=cure)


def _list_shards(path: str, **options: Any) -> set[str]:
    """The files that the index of a sharded base names; none without an index."""
    try:
        index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **options)
    except OSError:
        return set()
    return set(map(str, json.loads(Path(cast(str, index)).read_bytes())["weight_map"].values()))


def _find_unused_weights(decoder: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """The stored weights of a decoder's own modules that are not in it, such as a further layer.

    Heads of other tasks and vision towers are modules that the decoder does not have.
    """
    prefix = f"{decoder.base_model_prefix}."
    modules = {name.removeprefix(prefix).split(".")[0] for name in decoder.state_dict()}
    return sorted(
        name
        for name in unexpected
        if name.removeprefix(prefix).split(".")[0] in modules and not _STORED_BUFFERS.search(name)
    )
