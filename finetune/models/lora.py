"""Low-rank adapters (LoRA) through the optional package peft."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.optional_packages import require_package
from finetune.recipe.schema import LoraConfig
from task_formats import UsageError

ADAPTER_CONFIG = "adapter_config.json"


def _require_peft() -> None:
    require_package("peft", "lora", "this setting", where="base.lora")


@contextmanager
def _without_future_warnings() -> Iterator[None]:
    """Peft uses a name that transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def add_adapters(
    decoder: PreTrainedModel, config: LoraConfig, new_ids: list[int]
) -> PreTrainedModel:
    """Wraps a decoder with adapters; all its weights but the embedding rows `new_ids` are frozen.

    Raises:
        UsageError: peft is not installed, or no layer has a name of `targets`.
    """
    _require_peft()
    from peft import LoraConfig, get_peft_model

    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # A float works too.
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        trainable_token_indices=new_ids,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in decoder.modules()),
    )
    try:
        with _without_future_warnings():
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


def remove_adapters(decoder: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of a decoder without its adapters: the base, with the new tokens."""
    return cast(PreTrainedModel, cast(Any, deepcopy(decoder)).unload())


def load_adapters(
    decoder: PreTrainedModel, folder: Path, *, merge: bool = False
) -> PreTrainedModel:
    """Wraps a decoder with the adapters that `save_adapters` wrote, or merges them into it.

    Raises:
        UsageError: peft is not installed, or there are no adapters.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UsageError("the adapters are missing", where=str(folder), cure="Restore the folder.")
    _require_peft()
    from peft import PeftModel

    with _without_future_warnings():
        wrapped = PeftModel.from_pretrained(decoder, str(folder))
    return cast(PreTrainedModel, wrapped.merge_and_unload() if merge else wrapped)


def save_adapters(folder: Path, decoder: PreTrainedModel) -> None:
    """Writes the adapters and the trained embedding rows of a decoder as peft reads them."""
    if not hasattr(decoder, "merge_and_unload"):
        return
    with _without_future_warnings():
        # The trained rows are saved with the adapters; the whole table is the base's.
        cast(Any, decoder).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
