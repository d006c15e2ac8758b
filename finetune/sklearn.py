"""Fine-tuning with scikit-learn's manners: texts and labels in, a classifier out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from finetune.evaluation.predictor import Predictor, load
from finetune.recipe.loading import load_recipe, override_recipe
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig
from finetune.sklearn_inputs import (
    Samples,
    check_rows,
    plain_rows,
    read_labels,
    read_samples,
)
from finetune.storage import files
from finetune.training.train import train
from task_formats import Classes, Labels, Range, RowError, Task, UsageError, named_format
from task_formats.labels import as_text
from task_formats.task import LABEL

_SETTINGS = (
    "learning_rate", "batch_size", "epochs", "lm_coefficient", "warmup", "weight_decay",
    "max_grad_norm", "head_dropout", "max_tokens", "incomplete_batch", "layout",
    "tokens_per_forward", "precision",
)  # fmt: skip
_ROWS = ".rows.jsonl"


class Classifier(ClassifierMixin, BaseEstimator):
    """A pretrained decoder that is fine-tuned by `fit` and then tells classes.

    X is a list, an array or a Series of N samples: texts; pairs of texts; or mappings, which are
    rows of `task` (a DataFrame is rows too). y has N labels of any kind that can be hashed and
    ordered; `predict` gives them back as they were. Every parameter but these is a setting of a
    recipe's train part (TrainConfig), and None leaves what the task's recipe says,
    or the paper's value.

    base: a hub id, a folder or `tiny`; or a mapping: {"path": "gpt2", "lora": {"rank": 8}}.
    task: a shipped recipe's name, a YAML file, a Recipe or a task_formats.Task: how a mapping is
        read. With choices, y says which one is right, and what never is cannot be predicted.
    format: for pairs entailment (which is the default) or similarity, where both orders count.
    folder: keeps the run there, in the place of any earlier one; finetune.load reads it.
    random_state: a seed or a RandomState; None is the recipe's seed, so two fits are the same.
    device: cpu, cuda or the like; None takes the best there is.

    A fitted classifier can be pickled and copied: what is stored are the bytes of its safetensors
    and JSON files, so nothing refers to a folder.

    Raises UsageError, a ValueError, for samples or labels that cannot be used.
    """

    def __init__(
        self,
        base: str | Path | Mapping[str, Any] | None = None,
        task: str | Path | Recipe | Task | None = None,
        format: str | None = None,
        *,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        epochs: float | None = None,
        lm_coefficient: float | None = None,
        warmup: float | None = None,
        weight_decay: float | None = None,
        max_grad_norm: float | None = None,
        head_dropout: float | None = None,
        max_tokens: int | None = None,
        incomplete_batch: str | None = None,
        layout: str | None = None,
        tokens_per_forward: int | None = None,
        precision: str | None = None,
        folder: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | None = None,
    ) -> None:
        self.base, self.task, self.format = base, task, format
        self.learning_rate, self.batch_size, self.epochs = learning_rate, batch_size, epochs
        self.lm_coefficient, self.warmup, self.weight_decay = lm_coefficient, warmup, weight_decay
        self.max_grad_norm, self.head_dropout = max_grad_norm, head_dropout
        self.max_tokens, self.incomplete_batch = max_tokens, incomplete_batch
        self.layout, self.tokens_per_forward, self.precision = layout, tokens_per_forward, precision
        self.folder, self.random_state, self.device = folder, random_state, device

    def fit(self, X: Iterable[Any], y: Iterable[Any]) -> "Classifier":
        """Fine-tunes the base on N samples and their labels."""
        samples = read_samples(X)
        targets = read_labels(_flat(y), len(samples.values))
        recipe, reader = self._told(samples)
        rows = samples.rows(reader.format.fields)
        check_rows(reader, rows)
        names = _name_classes(targets.labels, None if self.task is None else reader.labels)
        task = _trained_task(reader, names)
        labelled = [
            {**row, str(task.columns[LABEL]): names[k]}
            for row, k in zip(plain_rows(reader, rows), targets.which, strict=True)
        ]
        self._predictor = self._train(recipe, task, labelled)
        self._reader, self._kind, self.classes_ = reader, samples.kind, targets.labels
        self._places = [cast(Classes, task.labels).names.index(name) for name in names]
        return self

    def predict(self, X: Iterable[Any]) -> np.ndarray:
        """(N,) labels, of the type and values that y had."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Iterable[Any]) -> np.ndarray:
        """(N, C) probabilities, their columns in the order of classes_."""
        check_is_fitted(self)
        samples = read_samples(X)
        if samples.kind != self._kind:
            raise UsageError(f"X[0] is {samples.words}, and `fit` had seen a {self._kind}")
        rows = samples.rows(self._reader.format.fields)
        check_rows(self._reader, rows)
        found = self._predictor.predict(plain_rows(self._reader, rows))
        table = np.zeros((len(found), len(self._places)))
        for n, prediction in enumerate(found):
            scores = dict(enumerate(prediction.scores))
            table[n] = [scores.get(place, 0.0) for place in self._places]
        chooses = self._reader.format.chooses  # among more choices, maybe, than there are classes
        return table / table.sum(axis=1, keepdims=True) if chooses else table

    def score(
        self,
        X: Iterable[Any],
        y: Iterable[Any],
        sample_weight: Sequence[float] | None = None,
    ) -> float:
        """The accuracy: the share of samples whose label is told right."""
        right = [bool(a == b) for a, b in zip(self.predict(X), _flat(y), strict=True)]
        return float(np.average(right, weights=sample_weight))

    def _told(self, samples: Samples) -> tuple[Recipe, Task]:
        """The recipe with all settings, and the task that reads the samples."""
        recipe, task = self._read(samples)
        base = self.base if isinstance(self.base, Mapping) else {"path": self.base}
        seed = self.random_state
        if isinstance(seed, np.random.RandomState):
            seed = check_random_state(seed).randint(2**31)
        said = {f"train.{name}": getattr(self, name) for name in _SETTINGS}
        said |= {f"base.{name}": value for name, value in base.items()} | {"train.seed": seed}
        changes = {name: _plain(value) for name, value in said.items() if value is not None}
        # Whole states are for runs that somebody resumes.
        changes |= {"train.checkpoint_minutes": None, "train.checkpoint_updates": None}
        return override_recipe(recipe, changes), task

    def _read(self, samples: Samples) -> tuple[Recipe, Task]:
        """A recipe around the task that reads the samples, and this task."""
        if self.task is None:
            part = _part_of_format(self.format, samples)
            return Recipe(task=part), part.build()
        if self.format is not None:
            raise UsageError("task and format both say how to read X", cure="Leave one out.")
        if samples.kind != "row":
            what = f"a task reads mappings, and X[0] is {samples.words}"
            raise UsageError(what, cure="Give rows with the task's columns, or leave task out.")
        if isinstance(self.task, Task):
            return Recipe(task=TaskConfig.of(self.task)), self.task.without_prompt()
        recipe = self.task if isinstance(self.task, Recipe) else load_recipe(self.task)
        return recipe, recipe.task.build().without_prompt()

    def _train(self, recipe: Recipe, task: Task, rows: list[dict[str, Any]]) -> Predictor:
        """Fine-tunes as ever, from a file of rows to a run's folder."""
        with TemporaryDirectory(prefix="gptft-") as scratch:
            home = Path(self.folder or scratch).absolute()
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            files.write_atomically(home / _ROWS, lines)
            data = DataConfig(train=str(home / _ROWS), evaluate=None)
            told = recipe.model_copy(update={"task": TaskConfig.of(task), "data": data})
            run = home if self.folder else home / "run"
            # Rows that code has read are not kept in the cache of encoded rows.
            train(told, run, overwrite=True, task=replace(task, read=dict), device=self.device)
            return load(run, self.device)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "_predictor" in state:
            state["_predictor"] = _pack(state["_predictor"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_predictor" in state:
            self._predictor = _unpack(state["_predictor"], self.device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array = True, True
        tags.input_tags.two_d_array = False
        return tags


def _flat(y: Any) -> Any:
    """A column of labels as a list of labels, with scikit-learn's warning."""
    return column_or_1d(y, warn=True) if getattr(y, "ndim", 1) > 1 else y


def _plain(value: Any) -> Any:
    """A grid search over numpy's numbers gives numpy's numbers; a Path is a text."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, Path) else value


def _part_of_format(name: str | None, samples: Samples) -> TaskConfig:
    """The task of a format over fields of its own names; y's labels replace those given here."""
    if name is None and samples.kind == "row":
        what = "X[0] is a mapping, and nothing says how to read it"
        raise UsageError(what, cure="Give task: a recipe's name or file, a Recipe or a Task.")
    name = name or {"text": "classification", "pair": "entailment"}[samples.kind]
    known = named_format(name)
    wanted = {"text": 1, "pair": 2}.get(samples.kind, len(known.fields))
    if known.chooses or len(known.fields) != wanted:
        cure = "Texts are for classification, pairs for entailment or similarity; else give task."
        raise UsageError(f"{name} does not read {samples.words}", cure=cure)
    columns = {field: field for field in known.fields}
    return TaskConfig(format=name, columns=columns, labels=("no", "yes"))


def _name_classes(labels: np.ndarray, known: Labels | None) -> list[str]:
    """The name of each of C labels, by which the head and the run's folder know it."""
    if labels.dtype.kind == "f":
        check_classification_targets(labels)
    if isinstance(known, Range):
        cure = "For scores use a recipe with a range, and finetune.train."
        raise UsageError("this task has scores, not classes", cure=cure)
    if known is None:
        found = [as_text(label) for label in labels.tolist()]
        distinct = all(found) and len(set(found)) == len(found)
        return found if distinct else [f"class {k}" for k in range(len(found))]
    try:
        found = [known.name(known.parse(label)) for label in labels.tolist()]
    except RowError as error:
        raise error.located("y") from None
    if len(set(found)) < len(found):
        raise UsageError(f"y has two labels for one class of the task: {labels.tolist()}")
    return found


def _trained_task(reader: Task, names: list[str]) -> Task:
    """What is trained: the reader's task on rows that are read already, with y's classes."""
    label = str(reader.columns.get(LABEL, LABEL))
    while label in reader.text_columns:
        label += "_"
    # The name of a choice is its place among the choices, and so must stay.
    choices = cast(Classes, reader.labels).names
    return replace(
        reader,
        columns={**reader.columns, LABEL: label},
        labels=Classes.of(choices if reader.format.chooses else names),
        metrics=("accuracy",),
        positive=None,
        unlabelled=frozenset(),
        read=None,
    )


def _pack(predictor: Predictor) -> dict[str, bytes]:
    """The files of a run, by name."""
    with TemporaryDirectory(prefix="gptft-") as scratch:
        predictor.save(Path(scratch))
        found = sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        return {str(path.relative_to(scratch)): path.read_bytes() for path in found}


def _unpack(content: Mapping[str, bytes], device: str | None) -> Predictor:
    with TemporaryDirectory(prefix="gptft-") as scratch:
        for name, data in content.items():
            files.write_atomically(files.safe_join(scratch, name), data)
        return load(scratch, device)
