"""A finished run put to use: predictions for any rows, and scores for labelled ones."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from finetune.checkpointing.model_folder import load_model, save_model
from finetune.checkpointing.run_folder import (
    MODEL,
    RECIPE,
    RESULT,
    load_run_recipe,
    read_result,
)
from finetune.data.splits import encode_split
from finetune.distributed.setup import (
    choose_layout,
    choose_max_tokens_per_forward,
    choose_precision,
    create_accelerator,
)
from finetune.evaluation.evaluate import (
    WINDOW,
    BatchConfig,
    compute_logits,
    evaluate,
    gather_logits,
)
from finetune.models.pretrained import Base, build_encoder
from finetune.models.task_model import TaskModel
from finetune.recipe.loading import dump_recipe
from finetune.recipe.schema import DataConfig, Recipe
from finetune.storage import files
from task_formats import Example, Prediction, Row, Task, UsageError

_STANDS_FOR = {"train": "train", "evaluate": "evaluate", "predict": "predict"}


class Predictor:
    """A trained model with its task: rows in, predictions out."""

    def __init__(
        self, recipe: Recipe, task: Task, model: TaskModel, base: Base, accelerator: Accelerator
    ) -> None:
        self.recipe, self.task = recipe, task
        self.model, self._base, self._accelerator = model, base, accelerator
        layout = choose_layout(recipe.train, base.decoder, task.format.is_multiple_choice)
        budget = choose_max_tokens_per_forward(recipe.train, base.decoder, accelerator.device)
        self._reading = BatchConfig(layout, base.task_tokens.pad_id, budget)
        self._encoder = build_encoder(recipe, task, base)
        self._unlabelled_task = task.without_labels()

    def predict(self, rows: Iterable[Row]) -> list[Prediction]:
        """A prediction per row, in order. RowError where a row lacks a text."""
        return [prediction for _, prediction in self.stream(rows)]

    def stream(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Prediction]]:
        """Each row with its prediction, in order; only a window of rows is held at a time."""
        rows, at = iter(rows), 0
        while window := list(islice(rows, WINDOW)):
            yield from zip(window, self._predict(window, at), strict=True)
            at += len(window)

    def _predict(self, window: list[Row], at: int) -> list[Prediction]:
        return self._predict_window(
            [
                self._unlabelled_task.example(row, f"row/{at + n}", labelled=False)
                for n, row in enumerate(window)
            ]
        )

    def predict_examples(self, examples: Sequence[Example]) -> list[Prediction]:
        """A prediction per example, in order; labels are ignored."""
        starts = range(0, len(examples), WINDOW)
        return [
            prediction
            for start in starts
            for prediction in self._predict_window(examples[start : start + WINDOW])
        ]

    def _predict_window(self, examples: Sequence[Example]) -> list[Prediction]:
        encoded = self._encoder.encode(examples)
        rounds = compute_logits(self.model, encoded, self._reading, self._accelerator)
        logits = gather_logits(rounds, len(encoded), self._accelerator)
        return [
            self.task.labels.decode(example.id, row[~np.isneginf(row)].tolist())
            for example, row in zip(encoded, logits, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Writes what `load` reads, without the history of the run."""
        files.write_atomically(folder / RECIPE, dump_recipe(self.recipe))
        save_model(folder / MODEL, self.model, self._base)

    def evaluate(self, split: str = "evaluate", data: DataConfig | None = None) -> dict[str, float]:
        """The task's metrics on a labelled split or file of the recipe's data, or of `data`.

        `split` is one of the recipe's (train, evaluate, or the name of an extra one) or a split's
        own name, such as validation.
        """
        data = data or self.recipe.data
        name = getattr(data, _STANDS_FOR.get(split, ""), None) or data.extra.get(split, split)
        tokenizer = self._base.task_tokens.fingerprint
        found = encode_split(
            self.recipe, self.task, self._encoder, name, tokenizer_hash=tokenizer, data=data
        )
        rounds = compute_logits(self.model, found.examples, self._reading, self._accelerator)
        return evaluate(rounds, found.examples, self.task, self._accelerator).scores


def load(
    folder: Path | str,
    device: str | None = None,
    *,
    task: Task | None = None,
    trust_remote_code: bool = False,
    **changes: Any,
) -> Predictor:
    """The best model of a run, ready to predict.

    `task` is needed where the run was trained with one of your own, `trust_remote_code` where its
    base comes with Python code; `changes` replace fields of the recipe's train part that do not
    change results (layout, tokens_per_forward, precision).
    Raises UsageError where the folder holds no finished run.
    """
    folder = Path(folder)
    recipe = load_run_recipe(folder, trust_remote_code)
    if changes:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
    if not (folder / MODEL).is_dir():
        raise _no_model(folder)
    task = recipe.task.resolve(task)
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    trust = recipe.base.trust_remote_code
    model, base = load_model(folder / MODEL, task, trust_remote_code=trust)
    model.to(accelerator.device)
    return Predictor(recipe, task, model, base, accelerator)


def _no_model(folder: Path) -> UsageError:
    """What a run without a model is: one that goes on, or a cell of a study that kept none."""
    if not (folder / RESULT).exists():
        what, cure = "this run has no model yet", f"gptft resume {folder}"
    elif "updates" not in read_result(folder):
        what = "nothing was trained here: this cell of a study guesses or asks"
        cure = "Give the folder of a run, or a cell that was trained, with its model kept."
    else:
        what = "this run is finished, and its model was not kept"
        cure = (
            "A cell of gptft compare is done anew, with its model, by the same command and "
            f"--keep-models --overwrite --only {folder.absolute().name}\n"
            f"or by gptft train --task {folder / RECIPE} -o {folder} --overwrite"
        )
    return UsageError(what, where=str(folder), cure=cure)
