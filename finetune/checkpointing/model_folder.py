"""A trained model on disk: a plain transformers folder, and the head beside it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.models.decoder import find_body
from finetune.models.lora import (
    load_adapters,
    merge_adapters,
    remove_adapters,
    save_adapters,
)
from finetune.models.pretrained import Base, load_decoder, without_progress_bar
from finetune.models.quantization import dequantize_layers, is_quantized, restore_conv1d
from finetune.models.task_model import TaskModel, build_task_model
from finetune.recipe.schema import BaseConfig
from finetune.storage import files, json_files
from finetune.storage.tensors import read_metadata, read_tensors, save_tensors
from task_formats import MultiLabel, Range, Task, UsageError

HEAD_FILE = "head.safetensors"
ADAPTER = "adapter"
"""Folder of the adapters. They are also merged into the weights, unless these are in 4 bits."""
THRESHOLDS = "thresholds.json"
"""Label to threshold, for several labels at once."""
CALIBRATION = "calibration.json"
"""The temperature that was fitted on the evaluation split, and the calibration errors there."""
_TASK = "task"
"""The metadata of a head: what its outputs mean."""


def save_model(folder: Path, model: nn.Module, base: Base, task: Task, max_tokens: int) -> None:
    """Writes decoder, tokenizer and head; the model that is read back computes equal numbers.

    Adapters are merged into the weights, so the folder can be the base of another run; they are
    also kept unmerged, in a folder of their own. Weights in 4 bits stay as they are: merging would
    round them. Labels, format and `max_tokens` are stored with the head, and thresholds of several
    labels at once in a file of their own.
    """
    task_model = cast(TaskModel, model)
    trained = task_model.backbone.decoder
    decoder = remove_adapters(trained) if is_quantized(trained) else merge_adapters(trained)
    if base.output == "missing":  # An output layer drawn at random is not saved.
        decoder = cast(PreTrainedModel, find_body(decoder))
    save_decoder(folder, decoder, base.task_tokens.tokenizer)
    save_adapters(folder / ADAPTER, trained)
    metadata = {_TASK: json_files.encode(_describe_task(task, max_tokens)).decode()}
    save_tensors(folder / HEAD_FILE, task_model.head_tensors(), metadata)
    labels = task.labels
    if isinstance(labels, MultiLabel) and labels.thresholds:
        table = dict(zip(labels.names, labels.thresholds, strict=True))
        text = json_files.encode(table, indent=2).decode()
        files.write_atomically(folder / THRESHOLDS, f"{text}\n")


def save_decoder(
    folder: Path, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Writes a decoder and its tokenizer with transformers, without its progress bar."""
    with without_progress_bar(), files.explain_os_errors(folder):
        decoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def has_model(folder: Path) -> bool:
    """Whether the folder holds weights."""
    return any(folder.glob("*.safetensors"))


def load_model(
    folder: Path,
    task: Task,
    max_tokens: int,
    *,
    head_bias: bool = True,
    trust_remote_code: bool = False,
    dequantize: bool = False,
) -> tuple[TaskModel, Base]:
    """Reads decoder and head, as `save_model` wrote them, for evaluation (no dropout).

    With `dequantize` weights in 4 bits become float32, and their adapters are merged into them.

    Raises:
        UsageError: There is no head, it was trained with other labels, another format or another
            `max_tokens`, or it has another shape than the task needs.
    """
    if not (folder / HEAD_FILE).is_file():
        raise UsageError(
            f"no trained model: {HEAD_FILE} is missing",
            where=str(folder),
            cure="Give the directory of a finished run, such as runs/rte.",
        )
    _check_task(folder / HEAD_FILE, task, max_tokens)
    path = str(folder.absolute())
    config = BaseConfig(path=path, dropout=None, trust_remote_code=trust_remote_code)
    base = load_decoder(config, allow_quantized=True)
    if is_quantized(base.decoder):
        base = replace(base, decoder=_add_adapters(base.decoder, folder / ADAPTER, dequantize))
    tensors = read_tensors(folder / HEAD_FILE)
    model = build_task_model(base, task, head_bias=head_bias)
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


def _add_adapters(decoder: PreTrainedModel, folder: Path, dequantize: bool) -> PreTrainedModel:
    """The decoder of a run in 4 bits with its adapters, or in float32 with them merged."""
    if not dequantize:
        return load_adapters(decoder, folder)
    dequantize_layers(decoder)
    merged = load_adapters(decoder, folder, merge=True)
    restore_conv1d(merged)
    return merged


def load_thresholds(folder: Path, task: Task) -> Task:
    """Returns the task with the thresholds of the saved model, if it has any.

    Raises:
        UsageError: The file does not hold a threshold for every label.
    """
    path = folder / THRESHOLDS
    if not isinstance(task.labels, MultiLabel) or not path.is_file():
        return task
    table = json_files.decode(path.read_bytes(), str(path))
    if not isinstance(table, dict):
        raise UsageError("no table of labels and thresholds", where=str(path))
    try:
        return replace(task, labels=task.labels.with_thresholds(table))
    except UsageError as error:
        raise error.located(str(path)) from None


class StoredCalibration(NamedTuple):
    """The temperature of a model, and its expected calibration errors on the evaluation split."""

    temperature: float
    error: float
    calibrated_error: float
    """With a temperature that was not fitted on the same rows."""
    rows: int


def save_calibration(folder: Path, calibration: StoredCalibration) -> None:
    """Writes the temperature of a model and its calibration errors."""
    content = json_files.encode(calibration._asdict(), indent=2) + b"\n"
    files.write_atomically(folder / CALIBRATION, content)


def read_calibration(folder: Path) -> StoredCalibration | None:
    """Returns temperature and calibration errors of the saved model; None if it has none.

    Raises:
        UsageError: The file does not hold four numbers, or no positive temperature.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    values = json_files.decode(path.read_bytes(), str(path))
    cure = "Restore the file, or delete it."
    if not isinstance(values, dict) or values.keys() != set(StoredCalibration._fields):
        raise UsageError("no calibration of a model", where=str(path), cure=cure)
    temperature = values["temperature"]
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        what = f"temperature must be a positive number (got {temperature!r})"
        raise UsageError(what, where=str(path), cure=cure)
    return StoredCalibration(**values)


def _describe_task(task: Task, max_tokens: int) -> dict[str, Any]:
    """What gives the outputs of a head their meaning."""
    labels = task.labels
    return {
        "task.format": [list(view) for view in task.format.views],
        "task.labels": None if isinstance(labels, Range) else dict(labels.raw),
        "train.max_tokens": max_tokens,
        **({"task.multi_label": True} if isinstance(labels, MultiLabel) else {}),
        **({"task.windows": list(asdict(task.windows).values())} if task.windows else {}),
    }


def _check_task(path: Path, task: Task, max_tokens: int) -> None:
    """Raises UsageError where a head was trained for another task."""
    text = read_metadata(path).get(_TASK)
    if text is None:  # Older versions and other programs write none.
        return
    trained = json_files.decode(text.encode(), str(path))
    trained = trained if isinstance(trained, dict) else {}
    described = _describe_task(task, max_tokens)
    for key in {**trained, **described}:
        now, before = described.get(key), trained.get(key)
        if isinstance(now, dict) and isinstance(before, dict):
            fits = _same_classes(before, now)
        else:
            fits = before == now
        if not fits:
            raise UsageError(
                f"the model was trained with {key} {before!s:.200}, not {now!s:.200}",
                where=str(path),
                cure=f"Restore {key} in the recipe.",
            )


def _same_classes(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether the classes have one order, and raw values that both contain mean the same class.

    Data with other raw values can be evaluated, once the recipe names them.
    """
    names, others = (list(dict.fromkeys(raw.values())) for raw in (one, other))
    return names == others and all(one[raw] == other[raw] for raw in one.keys() & other.keys())
