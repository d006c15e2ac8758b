"""Low-rank adapters through peft, an optional extra."""

import warnings
from copy import deepcopy
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.recipe.schema import LoraConfig
from task_formats import UsageError


def add_adapters(decoder: PreTrainedModel, part: LoraConfig, fresh: list[int]) -> PreTrainedModel:
    """The decoder with adapters in its linear layers; the rows `fresh` of the embedding train too.

    Raises UsageError where peft is not installed or no layer bears a name of `targets`.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UsageError(
            "base.lora needs the package peft", cure="pip install 'gptft[lora]'"
        ) from error
    config = LoraConfig(
        r=part.rank,
        lora_alpha=part.alpha,  # type: ignore[arg-type]  # peft says int and divides
        lora_dropout=part.dropout,
        target_modules=part.targets if isinstance(part.targets, str) else list(part.targets),
        trainable_token_indices=fresh,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in decoder.modules()),
    )
    try:
        with warnings.catch_warnings():
            # peft asks transformers for a name that transformers calls deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning)
            return cast(PreTrainedModel, get_peft_model(decoder, config))
    except ValueError as error:
        raise UsageError(
            f"base.lora does not fit this base: {error}", cure="Name its linear layers in targets."
        ) from error


def merge_adapters(decoder: PreTrainedModel) -> PreTrainedModel:
    """The plain decoder with any adapters added into its weights; `decoder` stays as it is."""
    if not hasattr(decoder, "merge_and_unload"):
        return decoder
    return cast(PreTrainedModel, cast(Any, deepcopy(decoder)).merge_and_unload())
