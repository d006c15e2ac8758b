"""A trained model on disk: a plain transformers folder, and the head beside it."""

from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from finetune.models.lora import merge_adapters
from finetune.models.pretrained import Base, load_decoder
from finetune.models.task_model import TaskModel, build_task_model
from finetune.recipe.schema import BaseConfig
from finetune.storage import files
from finetune.storage.tensors import read_tensors, save_tensors
from task_formats import Task, UsageError

HEAD_FILE = "head.safetensors"


def save_model(folder: Path, model: nn.Module, base: Base) -> None:
    """Writes decoder, tokenizer and head; the model that is read back computes equal numbers.

    Adapters are merged into the weights, so the folder can be the base of another run.
    """
    task_model = cast(TaskModel, model)
    save_decoder(folder, merge_adapters(task_model.backbone.decoder), base.task_tokens.tokenizer)
    save_tensors(folder / HEAD_FILE, task_model.head.state_dict())


def save_decoder(
    folder: Path, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a decoder and its tokenizer with transformers, without its progress bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with files.explain_os_errors(folder):
            decoder.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def has_model(folder: Path) -> bool:
    """Whether the folder holds weights."""
    return any(folder.glob("*.safetensors"))


def load_model(
    folder: Path, task: Task, *, trust_remote_code: bool = False
) -> tuple[TaskModel, Base]:
    """Reads decoder and head, as `save_model` wrote them, for evaluation (no dropout).

    Raises:
        UsageError: There is no head, or it has another shape than the task needs.
    """
    if not (folder / HEAD_FILE).is_file():
        raise UsageError(
            f"no trained model: {HEAD_FILE} is missing",
            where=str(folder),
            cure="Give the directory of a finished run, such as runs/rte.",
        )
    path = str(folder.absolute())
    base = load_decoder(BaseConfig(path=path, dropout=None, trust_remote_code=trust_remote_code))
    tensors = read_tensors(folder / HEAD_FILE)
    model = build_task_model(base, task, head_bias="bias" in tensors)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    needed = {name: tuple(tensor.shape) for name, tensor in model.head.state_dict().items()}
    if found != needed:
        raise UsageError(
            f"the head has the shapes {found}, and the task needs {needed}",
            where=str(folder / HEAD_FILE),
            cure="Use the model with the recipe that it was trained with.",
        )
    model.head.load_state_dict(tensors)
    return model.eval(), base
