"""Exports a finished run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from finetune.checkpointing.model_card import MODEL_CARD, CardContent, build_model_card
from finetune.checkpointing.run_folder import MODEL, RESULT, read_result
from finetune.data.examples import ReadReport, build_examples
from finetune.data.held_out import open_split
from finetune.data.sources import open_rows
from finetune.evaluation.predictor import Predictor, find_model_folder, load
from finetune.export.adapter import write_adapter
from finetune.export.classification import (
    write_sequence_classification,
    write_token_classification,
)
from finetune.export.onnx import write_onnx
from finetune.export.source import ExportSource
from finetune.export.standalone import write_standalone
from finetune.export.usage import describe_usage
from finetune.export.verification import Verification, verify
from finetune.models.pretrained import without_progress_bar
from finetune.storage.files import replace_folder, write_atomically
from task_formats import Example, Task, UsageError, suggest

CHECKED_ROWS = 200
"""Evaluation rows whose logits are compared."""


class ExportFormat(NamedTuple):
    """A format, and whether its weights can have another precision than fp32."""

    write: Callable[[ExportSource, Path], None]
    any_precision: bool = True


FORMATS = {
    "sequence-classification": ExportFormat(write_sequence_classification),
    "token-classification": ExportFormat(write_token_classification),
    "standalone": ExportFormat(write_standalone),
    "onnx": ExportFormat(write_onnx, any_precision=False),
    "adapter": ExportFormat(write_adapter, any_precision=False),
}


def export_run(
    run: Path,
    format: str,
    folder: Path,
    *,
    precision: str = "fp32",
    check: str | None = None,
    task: Task | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Writes a run in a format of `FORMATS`, and compares its logits with gptft's own.

    If anything fails, nothing is left in `folder`.

    Args:
        run: The run folder, or a download of what `gptft push` uploaded.
        format: A key of `FORMATS`.
        folder: Is created; it must not exist, or be empty.
        precision: Of the exported weights: fp32 or bf16.
        check: A file of rows to compare the logits on. [default: the evaluation split]
        task: Required if the run was trained with a task defined in Python.
        trust_remote_code: Allows Python code that comes with the base to run.

    Raises:
        UsageError: The run cannot be expressed in this format, or the logits differ.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", where="--to", cure=suggest(format, FORMATS))
    if precision != "fp32" and not FORMATS[format].any_precision:
        what = f"the format {format} is written in fp32 only"
        raise UsageError(what, where="--precision", cure="Leave --precision out.")
    if folder.resolve() == Path.cwd():
        what = "this is the current folder"
        raise UsageError(what, where=str(folder), cure="Name a folder that does not exist yet.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        cure = "Choose a folder that does not exist yet."
        raise UsageError("already exists", where=str(folder), cure=cure)
    model_folder = find_model_folder(run)
    result: dict[str, Any] = {"scores": {}}
    if model_folder != run or (run / RESULT).exists():  # Older downloads have none.
        result = read_result(run)
    predictor = load(
        run,
        "cpu",
        task=task,
        trust_remote_code=trust_remote_code,
        dequantize=True,
        precision="fp32",
    )
    if predictor.task.windows is not None:
        what = "a run that reads long texts in windows cannot be exported"
        raise UsageError(what, where=str(run), cure="Use it with gptft predict or gptft serve.")
    examples = _read_examples(predictor, check)
    with (
        replace_folder(folder) as partial,
        without_progress_bar(),
        _plain_model(model_folder, predictor, partial.parent) as model,
    ):
        source = ExportSource(run, model, predictor, precision)
        FORMATS[format].write(source, partial)
        verification = verify(source, format, partial, examples)
        usage, library = describe_usage(source, format)
        content = CardContent(run.absolute().name, predictor.recipe, predictor.task, result)
        write_atomically(partial / MODEL_CARD, str(build_model_card(content, usage, library)))
        return verification


@contextmanager
def _plain_model(saved: Path, predictor: Predictor, parent: Path) -> Iterator[Path]:
    """The run's saved model; of one in 4 bits a copy in full precision, deleted afterwards."""
    if predictor.recipe.base.quantization is None:
        yield saved
        return
    # On the disk of the export: the one of temporary files may be too small.
    with TemporaryDirectory(prefix=".gptft-", dir=parent) as folder:
        predictor.save(Path(folder))
        yield Path(folder, MODEL)


def _read_examples(predictor: Predictor, check: str | None) -> list[Example]:
    """The first rows of a file or of the evaluation split."""
    data = predictor.recipe.data
    try:
        split = data.evaluation_split
        if check is None and split is None:
            raise UsageError("the recipe has no evaluation split", where="data.evaluate")
        if check is None:
            rows = open_split(data, predictor.task, str(split))
        else:  # A file of its own, written like those of the recipe.
            rows = open_rows(data.model_copy(update={"path": None}), check)
        task = predictor.task.without_labels()
        report = ReadReport()
        found = build_examples(
            task, rows.read(), "row", labelled=False, on_bad_row="skip", report=report
        )
        examples = [item.example for item in islice(found, CHECKED_ROWS)]
    except UsageError as error:
        if check is not None:
            raise
        cure = "The export is checked on rows: name a file of rows with --check FILE."
        raise UsageError(error.what, where=error.where, cure=cure) from error
    if not examples:
        where, what = check or "data.evaluate", "no usable row to check the export with"
        if report.skipped:
            bad = report.skipped[0]
            where, what = str(bad.location), f"{what}: {bad.reason}"
        raise UsageError(what, where=where, cure="Name a file of rows with --check FILE.")
    return examples
