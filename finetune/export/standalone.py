"""Folders with a `predict.py` that needs transformers or onnxruntime, and no gptft."""

import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoModel

from finetune.checkpointing.model_folder import HEAD_FILE, save_decoder
from finetune.export.source import ExportSource
from finetune.storage import json_files
from finetune.storage.files import write_atomically
from task_formats import Labels, MultiLabel
from task_formats.example import SpecialTokens
from task_formats.templates import split_pieces

SCRIPTS = files("finetune.export.scripts")
SCRIPT = SCRIPTS.joinpath("predict.py").read_text(encoding="utf-8")
"""The `predict.py` of folders that transformers reads."""
_ENCODE = "encode.py"


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


def write_prediction_script(source: ExportSource, folder: Path, script: str = SCRIPT) -> None:
    """Writes `predict.py`, `encode.py`, which it imports, and `task.json`, which both read.

    Args:
        source: The exported run.
        folder: The exported folder.
        script: The text of `predict.py`.
    """
    write_atomically(folder / "predict.py", script)
    write_atomically(folder / _ENCODE, SCRIPTS.joinpath(_ENCODE).read_text(encoding="utf-8"))
    content = json_files.encode(_describe_task(source), indent=2) + b"\n"
    write_atomically(folder / "task.json", content)


def _describe_task(source: ExportSource) -> dict[str, Any]:
    predictor = source.predictor
    task, tokens = predictor.task, predictor.base.task_tokens
    return {
        "fields": list(task.format.fields),
        "choices": task.format.is_multiple_choice,
        "labels": list(task.labels.names),
        "thresholds": _thresholds(task.labels),
        "views": [_list_parts(view, tokens.special_tokens) for view in task.format.views],
        "max_tokens": predictor.encoder.max_tokens,
        "pad": tokens.pad_id,
        "tokenize": {"add_special_tokens": False, "split_special_tokens": True},
    }


def _thresholds(labels: Labels) -> dict[str, float]:
    """The probability from which each of several labels is predicted; empty for other tasks."""
    if not isinstance(labels, MultiLabel):
        return {}
    return dict(zip(labels.names, labels.thresholds or [0.5] * labels.num_outputs, strict=True))


def _list_parts(view: Sequence[str], tokens: SpecialTokens) -> list[tuple[str, str, list[int]]]:
    """The parts of a view: words, the name of the field after them, and the tokens after it."""
    parts: list[tuple[str, str, list[int]]] = [("", "", [tokens.start])]
    for segment in view:
        pieces = [(words, name or "", list[int]()) for words, name in split_pieces(segment)]
        pieces[-1][2].append(tokens.delimiter)
        parts += pieces
    parts[-1][2][0] = tokens.extract
    return parts
