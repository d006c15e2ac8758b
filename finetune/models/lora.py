"""Low-rank adapters (LoRA) through the optional package peft."""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.recipe.schema import LoraConfig
from task_formats import UsageError


def add_adapters(
    decoder: PreTrainedModel, config: LoraConfig, new_ids: list[int]
) -> PreTrainedModel:
    """Wraps a decoder with adapters; all its weights but the embedding rows `new_ids` are frozen.

    Raises:
        UsageError: peft is not installed, or no layer has a name of `targets`.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UsageError(
            "base.lora needs the package peft", cure="pip install 'gptft[lora]'"
        ) from error
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # A float works too.
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        trainable_token_indices=new_ids,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in decoder.modules()),
    )
    try:
        with warnings.catch_warnings():
            # peft uses a name that transformers has deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning)
            return cast(PreTrainedModel, get_peft_model(decoder, peft_config))
    except ValueError as error:
        raise UsageError(
            f"base.lora does not fit this base: {error}", cure="Name its linear layers in targets."
        ) from error


def merge_adapters(decoder: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of a decoder with its adapters merged, or the decoder if it has none."""
    if not hasattr(decoder, "merge_and_unload"):
        return decoder
    return cast(PreTrainedModel, cast(Any, deepcopy(decoder)).merge_and_unload())


def save_adapters(folder: Path, decoder: PreTrainedModel) -> None:
    """Writes the adapters and the trained embedding rows of a decoder as peft reads them."""
    if not hasattr(decoder, "merge_and_unload"):
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # As in `add_adapters`.
        # The trained rows are saved with the adapters; the whole table is the base's.
        cast(Any, decoder).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
