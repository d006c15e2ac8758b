"""A trained model on disk: a plain transformers folder, and the head beside it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from finetune.checkpointing.seals import check_model, check_writer
from finetune.models.lora import merge_adapters
from finetune.models.pretrained import Base, load_decoder
from finetune.models.task_model import TaskModel, build_task_model
from finetune.recipe.schema import BaseConfig
from finetune.storage import files
from finetune.storage.tensors import read_tensors
from task_formats import Task, UsageError

HEAD_FILE = "head.safetensors"


def save_model(folder: Path, model: nn.Module, base: Base) -> None:
    """Writes decoder, tokenizer and head; what is read back computes the very same numbers.

    Adapters are merged into the weights, so the folder is a base like any other.
    """
    task_model = cast(TaskModel, model)
    save_decoder(folder, merge_adapters(task_model.backbone.decoder), base.task_tokens.tokenizer)
    head = {name: part.detach().cpu() for name, part in task_model.head.state_dict().items()}
    with _clear_errors(folder):
        save_file(head, folder / HEAD_FILE)


def save_decoder(
    folder: Path, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a decoder and its tokenizer as transformers has them, without its progress bar.

    UsageError on a full, read-only or forbidden disk.
    """
    files.check_disk_space(folder, sum(part.nbytes for part in decoder.parameters()))
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with _clear_errors(folder):
            decoder.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    """As `files.explain_os_errors`, also for system errors that Rust reports."""
    with files.explain_os_errors(folder):
        try:
            yield
        except Exception as error:
            told = re.search(r"\(os error (\d+)\)", str(error))
            if told is None or isinstance(error, OSError):
                raise
            number = int(told[1])
            raise OSError(number, os.strerror(number), str(folder)) from error


def require_model(folder: Path, run: str | None = None) -> None:
    """UsageError where there is no model at all, or one that `check_model` refuses."""
    if not any(folder.glob("*.safetensors")):
        raise UsageError("no model", where=str(folder))
    check_model(folder, run)


def load_model(
    folder: Path, task: Task, *, trust_remote_code: bool = False, run: str | None = None
) -> tuple[TaskModel, Base]:
    """Decoder and head as saved, for reading only: no dropout.

    UsageError where a file lacks or is damaged, or where another run than `run` saved them.
    """
    check_writer(folder, run)
    if not (folder / HEAD_FILE).is_file():
        raise UsageError(
            f"no trained model in {folder}",
            cure="Give the folder of a finished run, such as runs/rte.",
        )
    part = BaseConfig(
        path=str(folder.absolute()), dropout=None, trust_remote_code=trust_remote_code
    )
    base = load_decoder(part)
    model = build_task_model(base, task)
    _fill_head(model, folder / HEAD_FILE)
    return model.eval(), base


def _fill_head(model: TaskModel, path: Path) -> None:
    """UsageError where the file holds another task's head, or none."""
    found, wanted = read_tensors(path), model.head.state_dict()
    if {name: part.shape for name, part in found.items()} != {
        name: part.shape for name, part in wanted.items()
    }:
        raise UsageError(
            "the head is another task's",
            where=str(path),
            cure="Model and recipe of a run belong together: were files exchanged?",
        )
    model.head.load_state_dict(found)
