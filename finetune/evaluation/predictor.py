"""Predictions and scores with a finished run."""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator

from finetune.checkpointing.model_folder import (
    HEAD_FILE,
    load_model,
    load_thresholds,
    read_calibration,
    save_model,
)
from finetune.checkpointing.run_folder import MODEL, RECIPE, RESULT, is_run, load_run_recipe
from finetune.data.chunks import example_size, split_into_chunks
from finetune.data.examples import build_examples
from finetune.data.rows import locate_rows
from finetune.data.splits import Split, encode_split
from finetune.data.token_store import encode_examples
from finetune.distributed.memory import return_free_memory
from finetune.distributed.setup import choose_batch_config, choose_precision, create_accelerator
from finetune.evaluation.evaluate import (
    CHUNK_ROWS,
    EvaluationResult,
    compute_logits,
    decode_logits,
    evaluate,
    gather_logits,
    show_evaluation,
)
from finetune.models.pretrained import Base, build_encoder
from finetune.models.task_model import TaskModel
from finetune.models.token_views import TokenView, make_token_views
from finetune.progress import Progress
from finetune.recipe.schema import DataConfig, Recipe
from finetune.storage import files
from task_formats import Encoded, Example, Prediction, Row, Task, UsageError

_MAX_LOGITS = 2**24
"""Logits that are held at once in a stream of predictions."""
_SECONDS_BETWEEN_RETURNS = 2.0
"""Between two returns of free memory, each of which takes some milliseconds."""


class SplitEvaluation(NamedTuple):
    """The rows of a split, with their scores and predictions in the same order."""

    split: Split
    result: EvaluationResult


class Predictor:
    """A trained model with its task; `finetune.load` makes one from a run folder."""

    def __init__(
        self, recipe: Recipe, task: Task, model: TaskModel, base: Base, accelerator: Accelerator
    ) -> None:
        self.recipe, self.task, self.model = recipe, task, model.eval()
        self.base, self._accelerator = base, accelerator
        self._batch_config = choose_batch_config(
            base.decoder,
            accelerator,
            base.task_tokens.pad_id,
            layout=recipe.train.layout,
            max_tokens=recipe.train.tokens_per_forward,
        )
        self.encoder = build_encoder(recipe, task, base)
        self._next_return = 0.0

    @property
    def precision(self) -> str:
        """The precision and the kind of device, on which the last digits of results depend."""
        precision = "bf16" if self._accelerator.mixed_precision == "bf16" else "fp32"
        return f"{precision} on {self._accelerator.device.type}"

    def predict(self, rows: Iterable[Row]) -> list[Prediction]:
        """Predicts rows.

        Args:
            rows: Mappings with the columns of the task; a label is not needed and not read.

        Returns:
            A prediction per row, in order.

        Raises:
            RowError: A row has no text for a field of the task.
        """
        located = locate_rows(rows, "rows")
        items = build_examples(self.task.without_labels(), located, "rows", labelled=False)
        return list(self.stream([item.example for item in items]))

    def stream(
        self, examples: Iterable[Example], progress: Progress | None = None
    ) -> Iterator[Prediction]:
        """Yields a prediction per example, in order; holds one chunk of examples at a time.

        `progress` counts the examples of every forward pass.

        Raises:
            UsageError: The model's output for an example is not finite.
        """
        rows = max(1, min(CHUNK_ROWS, _MAX_LOGITS // self.task.labels.num_outputs))
        for chunk in split_into_chunks(examples, rows, example_size):
            encoded = encode_examples(chunk, self.encoder)
            yield from decode_logits(self.compute_logits(encoded, progress), encoded, self.task)
            if time.monotonic() >= self._next_return:
                return_free_memory()
                self._next_return = time.monotonic() + _SECONDS_BETWEEN_RETURNS

    def compute_logits(
        self, encoded: Sequence[Encoded], progress: Progress | None = None
    ) -> np.ndarray:
        """Returns (N, L) logits: L is C classes, K choices (-inf where absent) or 1 score.

        Raises:
            UsageError: A logit is not finite.
        """
        passes = compute_logits(self.model, encoded, self._batch_config, self._accelerator)
        if progress:
            processes = self._accelerator.num_processes
            passes = progress.count(passes, lambda rows: len(rows) * processes)
        logits = gather_logits(passes, len(encoded), self._accelerator)
        if (bad := np.isnan(logits).any(axis=1)).any():
            what = f"the model's output for {encoded[int(bad.argmax())].id} is not finite"
            raise UsageError(what, cure="Its weights are damaged; train it again.")
        return logits

    def evaluate(
        self,
        split: str = "evaluate",
        data: DataConfig | None = None,
        *,
        limit: int | None = None,
    ) -> dict[str, float]:
        """Computes the task's metrics on a labelled split.

        Args:
            split: A split of the recipe (train, evaluate, predict or the name of an extra one), or
                the name of a split of the data set, such as validation.
            data: Replaces the recipe's data.
            limit: Use only the first rows; by default all, also if `data.limit` limited training.

        Returns:
            Metric name to value.
        """
        return self.evaluate_split(split, data, limit=limit).result.scores

    def evaluate_split(
        self,
        split: str = "evaluate",
        data: DataConfig | None = None,
        *,
        limit: int | None = None,
    ) -> SplitEvaluation:
        """Like `evaluate`, and returns the rows and their predictions as well."""
        data = (data or self.recipe.data).model_copy(update={"limit": limit})
        recipe = self.recipe.model_copy(update={"data": data})
        of_recipe = {
            "train": data.train,
            "evaluate": data.evaluation_split,
            "predict": data.predict,
        }
        name = of_recipe.get(split) or data.extra.get(split, split)
        tokenizer = self.base.task_tokens.fingerprint
        encoded = encode_split(recipe, self.task, self.encoder, name, tokenizer_hash=tokenizer)
        examples = encoded.examples
        passes = compute_logits(self.model, examples, self._batch_config, self._accelerator)
        passes = show_evaluation(passes, name, len(examples), self._accelerator)
        return SplitEvaluation(encoded, evaluate(passes, examples, self.task, self._accelerator))

    def view_tokens(self, example: Example) -> list[TokenView]:
        """Returns the K views of an example as the model reads them, token by token."""
        [encoded] = self.encoder.encode([example])
        task_tokens, max_tokens = self.base.task_tokens, self.encoder.max_tokens
        return make_token_views(example, encoded, self.task, task_tokens, max_tokens, with_lm=False)

    def save(self, folder: Path) -> None:
        """Writes recipe and model, which `load` reads, without the history of the run."""
        files.write_atomically(folder / RECIPE, self.recipe.to_yaml())
        with files.replace_folder(folder / MODEL) as partial:
            save_model(partial, self.model, self.base, self.task, self.recipe.train.max_tokens)


def load(
    folder: Path | str,
    device: str | None = None,
    *,
    task: Task | None = None,
    trust_remote_code: bool = False,
    calibrated: bool = False,
    dequantize: bool = False,
    **changes: Any,
) -> Predictor:
    """Loads the best model of a run for prediction.

    Args:
        folder: The run folder, or a download of what `gptft push` uploaded.
        device: cpu, cuda or the like. [default: the best available]
        task: Required if the run was trained with a task defined in Python.
        trust_remote_code: Allows Python code that comes with the base to run.
        calibrated: Divides the logits by the temperature that was fitted on the evaluation split,
            so that probabilities fit how often the model is right. The predicted labels stay.
        dequantize: Reads a model in 4 bits in float32, with its adapters merged. Its `save` then
            writes a plain model.
        **changes: Replace settings of the recipe's train section that do not change results
            (layout, tokens_per_forward, precision).

    Raises:
        UsageError: The folder holds no finished run, or the run has no temperature.
    """
    folder = Path(folder)
    recipe = load_run_recipe(folder, trust_remote_code)
    if changes:
        recipe = recipe.with_train(**changes)
    model_folder = find_model_folder(folder)
    task = recipe.task.resolve(task)
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    model, base = load_model(
        model_folder,
        task,
        recipe.train.max_tokens,
        head_bias=recipe.head.bias,
        trust_remote_code=recipe.base.trust_remote_code,
        dequantize=dequantize,
    )
    model.to(accelerator.device)
    if calibrated:
        model.temperature = _read_temperature(model_folder, folder)
    task = load_thresholds(model_folder, task)
    return Predictor(recipe, task, model, base, accelerator)


def find_model_folder(run: Path) -> Path:
    """Returns the folder of a run's model, which of a download is the folder itself.

    Raises:
        UsageError: The run has none.
    """
    # `gptft push` puts the model beside the recipe.
    model_folder = run if (run / HEAD_FILE).is_file() else run / MODEL
    if not model_folder.is_dir() and is_run(run):
        what, cure = "this run has no model yet", f"gptft resume {run}"
        if (run / RESULT).exists():
            what = "this run is finished and has no model"
            options = f"--keep-models --overwrite --only {run.absolute().name}"
            cure = f"If gptft compare trained it, repeat that command with {options}"
        raise UsageError(what, where=str(run), cure=cure)
    return model_folder


def _read_temperature(model_folder: Path, run: Path) -> float:
    """The temperature of a model; UsageError if none was fitted."""
    calibration = read_calibration(model_folder)
    if calibration is None:
        what = "this run has no temperature, which is fitted on an evaluation split of classes"
        cure = "Predict without --calibrated, or train with evaluation rows (--hold-out 0.1)."
        raise UsageError(what, where=str(run), cure=cure)
    return calibration.temperature
