"""Folders with a `predict.py` that needs transformers or onnxruntime, and no gptft."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoModel

from finetune.checkpointing.model_folder import HEAD_FILE, save_decoder
from finetune.export.source import ExportSource
from finetune.storage import json_files
from finetune.storage.files import write_atomically
from task_formats import Format, Labels, MultiLabel, templates


def write_standalone(source: ExportSource, folder: Path) -> None:
    """Writes decoder, tokenizer and head, with a `predict.py` for every kind of task.

    The layer that predicts tokens is left out.
    """
    decoder = AutoModel.from_pretrained(
        source.model_folder,
        dtype=source.dtype,
        trust_remote_code=source.predictor.recipe.base.trust_remote_code,
    )
    write_head(source, folder)
    save_decoder(folder, decoder, source.predictor.base.task_tokens.tokenizer)
    write_prediction_script(source, folder)


def write_head(source: ExportSource, folder: Path) -> None:
    """Writes the head's weights, which stay in float32."""
    source.linear_head()
    shutil.copyfile(source.model_folder / HEAD_FILE, folder / HEAD_FILE)


def write_prediction_script(source: ExportSource, folder: Path) -> None:
    """Writes `predict.py` and the description of the task that it reads."""
    script = files("finetune.export.scripts").joinpath("predict.py").read_text(encoding="utf-8")
    write_atomically(folder / "predict.py", script)
    content = json_files.encode(_describe_task(source), indent=2) + b"\n"
    write_atomically(folder / "task.json", content)


def _describe_task(source: ExportSource) -> dict[str, Any]:
    predictor = source.predictor
    task, tokens = predictor.task, predictor.base.task_tokens
    return {
        "fields": list(task.format.fields),
        "choices": task.format.is_multiple_choice,
        "labels": list(task.labels.names) or None,
        "thresholds": _thresholds(task.labels),
        "views": _split_views(task.format),
        "max_tokens": predictor.encoder.max_tokens,
        **tokens.special_tokens._asdict(),
        "pad": tokens.pad_id,
    }


def _thresholds(labels: Labels) -> list[float] | None:
    """The probability from which each of several labels is predicted; None for other tasks."""
    if not isinstance(labels, MultiLabel):
        return None
    return list(labels.thresholds or [0.5] * labels.num_outputs)


def _split_views(format: Format) -> list[list[tuple[tuple[str, str | None], ...]]]:
    """Views, their texts, and the pieces of each: the words before a field, and the field."""
    return [[templates.split_pieces(segment) for segment in view] for view in format.views]
