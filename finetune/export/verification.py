"""Proves an exported folder: loaded without gptft, in another process, it gives the same logits."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.export.classification import texts_of
from finetune.export.source import ExportSource
from task_formats import Example, UsageError

TOLERANCE = 1e-4
"""The largest difference between logits in float32."""


class Verification(NamedTuple):
    """What was compared."""

    rows: int
    max_difference: float
    """The largest |difference| between two logits."""
    cut_differently: int
    """Long pairs that transformers cuts one token differently; their logits are not compared."""


def verify(
    source: ExportSource, format: str, folder: Path, examples: Sequence[Example]
) -> Verification:
    """Compares the logits of a folder with gptft's own, row by row.

    Args:
        source: The exported run.
        format: The format of the folder.
        folder: The exported folder.
        examples: Rows to compare.

    Raises:
        UsageError: The folder cannot be loaded, reads a row differently, or in float32 gives
            logits that differ by more than `TOLERANCE`.
    """
    predictor = source.predictor
    encoded = predictor.encoder.encode(examples)
    expected = predictor.compute_logits(encoded)
    has_texts = format.endswith("-classification")
    rows: list[Any] = [
        texts_of(predictor.task, example) if has_texts else _row(example) for example in examples
    ]
    result = run_check(folder, format, rows)
    differences = []
    for n, (row, values) in enumerate(zip(encoded, expected, strict=True)):
        if has_texts and result["tokens"][n] != [*row.prefix, *row.endings[0]]:
            if not row.truncated_tokens:
                raise _error(folder, f"the exported tokenizer reads row {row.id} differently")
            continue
        differences.append(np.abs(result["logits"][n] - values[~np.isneginf(values)]).max())
    if not differences:
        raise _error(folder, "transformers cuts every row differently, so nothing was compared")
    largest = float(np.max(differences))
    if not largest <= (TOLERANCE if source.precision == "fp32" else np.inf):
        what = f"logits differ by up to {largest:.1e} (allowed: {TOLERANCE:.0e})"
        raise _error(folder, f"loaded without gptft, {what}")
    return Verification(len(examples), largest, len(examples) - len(differences))


def _row(example: Example) -> dict[str, Any]:
    choices = {"choices": example.choices} if example.choices else {}
    return {**example.fields, **choices}


def run_check(folder: Path, format: str, rows: list[Any]) -> dict[str, Any]:
    """Computes logits with an exported folder in a process that cannot import gptft."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    script = files("finetune.export.scripts").joinpath("check.py")
    with as_file(script) as path, tempfile.TemporaryDirectory(prefix="gptft-") as work:
        source, target = Path(work, "rows.json"), Path(work, "logits.json")
        source.write_text(json.dumps(rows), encoding="utf-8")
        command = [sys.executable, "-P", str(path), str(folder.absolute()), format]
        done = subprocess.run(
            [*command, str(source), str(target)],
            cwd=work,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise _error(folder, f"it cannot be used without gptft: {reason}")
        result: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return result


def _error(folder: Path, what: str) -> UsageError:
    cure = "Nothing was written. Please report this, with the family and the format."
    return UsageError(f"the export failed its check: {what}", where=folder.stem, cure=cure)
