"""A scikit-learn compatible classifier."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from finetune.data.examples import build_examples
from finetune.data.rows import locate_rows
from finetune.evaluation.predictor import Predictor, load
from finetune.recipe.loading import load_recipe, override_recipe
from finetune.recipe.schema import DataConfig, Recipe, TaskConfig
from finetune.storage import files
from finetune.training.finetuning import train
from task_formats import Classes, Example, Range, RowError, Task, UsageError, named_format
from task_formats.labels import as_text
from task_formats.task import LABEL

_TRAIN_SETTINGS = (
    "learning_rate", "batch_size", "epochs", "lm_coefficient", "warmup", "weight_decay",
    "max_grad_norm", "head_dropout", "max_tokens", "incomplete_batch", "layout",
    "tokens_per_forward", "precision",
)  # fmt: skip
_SIMPLE = (bool, int, float, str)


class Classifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a pretrained decoder to classify texts, pairs of texts or rows of a task.

    `X` is a list, array, Series or DataFrame of N samples of one kind: texts, pairs of texts, or
    mappings (each row of a DataFrame is one), which `task` describes how to read. `y` holds N
    labels that can be hashed and sorted; `predict` returns labels of the same type.

    Every parameter from `learning_rate` to `precision` is a field of `TrainConfig`. None keeps the
    value of the recipe that `task` names, or else the default of the GPT-1 paper.

    A fitted classifier can be pickled and copied; the pickle contains the whole model.

    Args:
        base: Hub id, folder or `tiny`; or a mapping with more fields of `BaseConfig`, such as
            `{"path": "gpt2", "lora": {"rank": 8}}`.
        task: How to read mappings: the name of a shipped recipe, a YAML file, a `Recipe` or a
            `task_formats.Task`. For multiple choice, `y` says which choice is correct; choices
            that never occur in `y` are never predicted.
        format: For pairs: `entailment` (the default), or `similarity` if their order is irrelevant.
        learning_rate: Peak learning rate.
        batch_size: Examples in one update.
        epochs: Passes over the training data.
        lm_coefficient: Weight λ of the auxiliary language-model loss.
        warmup: Fraction of updates over which the learning rate rises.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Maximum global norm of the gradient.
        head_dropout: Dropout probability before the head.
        max_tokens: Maximum sequence length in tokens.
        incomplete_batch: `keep` or `drop` the last, smaller batch of an epoch.
        layout: How sequences fill a batch; every layout gives the same result.
        tokens_per_forward: Maximum number of tokens in one forward pass.
        precision: `fp32`, `bf16` or `auto`.
        folder: Keeps the run there, where `finetune.load` reads it. Replaces an earlier run.
        random_state: Seed or RandomState; None uses the seed of the recipe, so that every `fit`
            gives the same model.
        device: Such as `cpu` or `cuda`; None selects the best available device.

    Attributes:
        classes_: (C,) sorted distinct labels.

    Example:
        >>> classifier = Classifier(base="tiny", epochs=1)
        >>> classifier.fit(["a fine film", "a dull film"], ["good", "bad"])  # doctest: +SKIP
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
        """Fine-tunes the base.

        Args:
            X: N samples.
            y: N labels.

        Returns:
            The classifier itself.

        Raises:
            UsageError: A sample, label or parameter cannot be used. It is a ValueError.
        """
        samples = _parse_samples(X)
        targets = _parse_labels(_flatten_column(y), len(samples.values))
        recipe, reader = self._read_task(samples)
        examples = _make_examples(reader, samples)
        names = _name_classes(targets.labels, None if self.task is None else reader)
        task = _make_training_task(reader, names)
        self._columns = [int(task.labels.parse(name)) for name in names]
        labelled = [
            _add_label(example, self._columns[k], f"X[{n}]")
            for n, (example, k) in enumerate(zip(examples, targets.indices, strict=True))
        ]
        recipe = override_recipe(recipe, self._overrides())
        self._predictor = self._train(recipe, task, labelled)
        self._reader, self._kind, self.classes_ = reader, samples.kind, targets.labels
        return self

    def predict(self, X: Iterable[Any]) -> np.ndarray:
        """Predicts the most likely class.

        Args:
            X: N samples of the kind seen by `fit`.

        Returns:
            (N,) labels, of the type that `y` had.
        """
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Iterable[Any]) -> np.ndarray:
        """Predicts the probability of every class.

        Args:
            X: N samples of the kind seen by `fit`.

        Returns:
            (N, C) probabilities; columns are ordered as `classes_`.
        """
        check_is_fitted(self)
        samples = _parse_samples(X)
        if samples.kind != self._kind:
            raise UsageError(f"X[0] is a {samples.kind}, but fit was called with a {self._kind}")
        predictions = self._predictor.predict_examples(_make_examples(self._reader, samples))
        table = np.zeros((len(predictions), len(self._columns)))
        for n, prediction in enumerate(predictions):
            scores = dict(enumerate(prediction.scores))
            table[n] = [scores.get(column, 0.0) for column in self._columns]
        # A row may offer choices that never occur in y: the others share their probability.
        chooses = self._reader.format.is_multiple_choice
        return table / table.sum(axis=1, keepdims=True) if chooses else table

    def score(
        self,
        X: Iterable[Any],
        y: Iterable[Any],
        sample_weight: Sequence[float] | None = None,
    ) -> float:
        """Computes the accuracy.

        Args:
            X: N samples.
            y: N true labels.
            sample_weight: N weights; None weights all samples equally.

        Returns:
            The weighted fraction of correct predictions.
        """
        correct = [bool(a == b) for a, b in zip(self.predict(X), _flatten_column(y), strict=True)]
        return float(np.average(correct, weights=sample_weight))

    def _read_task(self, samples: "_Samples") -> tuple[Recipe, Task]:
        """The recipe before the parameters are applied, and the task that reads the samples."""
        if self.task is None:
            config = _make_task_config(self.format, samples)
            return Recipe(task=config), config.build()
        if self.format is not None:
            raise UsageError("task and format both say how to read X", cure="Leave one out.")
        if samples.kind != "row":
            what = f"a task reads mappings, but X[0] is a {samples.kind}"
            raise UsageError(what, cure="Give rows with the task's columns, or leave task out.")
        if isinstance(self.task, Task):
            return Recipe(task=TaskConfig.from_task(self.task)), self.task.without_prompt()
        recipe = self.task if isinstance(self.task, Recipe) else load_recipe(self.task)
        return recipe, recipe.task.build().without_prompt()

    def _overrides(self) -> dict[str, Any]:
        """Values of the recipe that the parameters change."""
        base = self.base if isinstance(self.base, Mapping) else {"path": self.base}
        seed = self.random_state
        if isinstance(seed, np.random.RandomState):
            seed = seed.randint(2**31)
        values = {f"train.{name}": getattr(self, name) for name in _TRAIN_SETTINGS}
        values |= {f"base.{name}": value for name, value in base.items()} | {"train.seed": seed}
        changes = {name: _to_python(value) for name, value in values.items() if value is not None}
        # A fit cannot be resumed, so it needs no checkpoints.
        return changes | {"train.checkpoint_minutes": None, "train.checkpoint_updates": None}

    def _train(self, recipe: Recipe, task: Task, examples: Sequence[Example]) -> Predictor:
        data = DataConfig(train=None, evaluate=None)
        recipe = recipe.model_copy(update={"task": TaskConfig.from_task(task), "data": data})
        with TemporaryDirectory(prefix="gptft-") as temporary:
            run = Path(self.folder or Path(temporary) / "run").absolute()
            train(recipe, run, overwrite=True, task=task, examples=examples, device=self.device)
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


# -- X and y ---------------------------------------------------------------------------------------


class _Samples(NamedTuple):
    kind: str
    """`text`, `pair` or `row`."""
    values: list[Any]


def _parse_samples(X: Any) -> _Samples:
    """The samples of a list, array, Series or DataFrame."""
    if isinstance(X, str | bytes | Mapping) or not isinstance(X, Iterable):
        raise UsageError(f"X is {X!r}, not a list of samples", cure="For one sample write [X].")
    to_dict = getattr(X, "to_dict", None) if hasattr(X, "columns") else None
    values = list(to_dict("records") if to_dict else X)
    if not values:
        raise UsageError("X has no samples")
    kinds = [_kind_of(value, n) for n, value in enumerate(values)]
    for n, kind in enumerate(kinds):
        if kind != kinds[0]:
            cure = "Give samples of one kind: texts, pairs of texts, or mappings."
            raise UsageError(f"X[{n}] is a {kind}, but X[0] is a {kinds[0]}", cure=cure)
    return _Samples(kinds[0], values)


def _kind_of(value: Any, n: int) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "row"
    is_sequence = isinstance(value, list | tuple | np.ndarray)
    if is_sequence and len(value) == 2 and all(isinstance(text, str) for text in value):
        return "pair"
    cure = "A sample is a text, a pair of texts, or a mapping."
    raise UsageError(f"X[{n}] is {value!r}", cure=cure)


class _Targets(NamedTuple):
    labels: np.ndarray
    """(C,) sorted distinct labels, with the dtype of y."""
    indices: list[int]
    """The index into `labels` of each of the N samples."""


def _parse_labels(y: Any, count: int) -> _Targets:
    if y is None:
        raise UsageError("fit requires y to be passed, but the target y is None")
    values = list(y)
    if len(values) != count:
        raise UsageError(f"X has {count} samples and y has {len(values)} labels")
    for n, value in enumerate(values):
        if value is None or (isinstance(value, Real) and value != value):
            raise UsageError(f"y[{n}] is {value!r}: no label", cure="Leave such samples out.")
    try:
        labels = sorted(set(values))
    except TypeError as error:
        what = f"the labels in y cannot be sorted: {error}"
        raise UsageError(what, cure="Give labels of one kind: all texts, or all numbers.") from None
    if len(labels) < 2:
        raise UsageError(f"y needs at least two classes, but all labels are {labels[0]!r}")
    index = {label: k for k, label in enumerate(labels)}
    return _Targets(
        _to_array(labels, getattr(y, "dtype", None)), [index[value] for value in values]
    )


def _to_array(labels: list[Any], dtype: Any) -> np.ndarray:
    """(C,) labels in an array that keeps their type."""
    if isinstance(dtype, np.dtype):
        return np.array(labels, dtype=dtype)
    if len(set(map(type, labels))) == 1 and type(labels[0]) in _SIMPLE:
        return np.array(labels)
    array = np.empty(len(labels), dtype=object)
    array[:] = labels
    return array


def _flatten_column(y: Any) -> Any:
    """(N, 1) labels as (N,), with scikit-learn's warning."""
    return column_or_1d(y, warn=True) if getattr(y, "ndim", 1) > 1 else y


def _to_python(value: Any) -> Any:
    """Values of numpy (a grid search gives such) and paths as a recipe has them."""
    value = value.item() if isinstance(value, np.generic) else value
    return str(value) if isinstance(value, Path) else value


# -- tasks and classes -----------------------------------------------------------------------------


def _make_task_config(name: str | None, samples: _Samples) -> TaskConfig:
    """The task of a format whose columns are called like its fields; y replaces its labels."""
    if name is None and samples.kind == "row":
        what = "X[0] is a mapping, but there is no task to read it"
        raise UsageError(what, cure="Give task: a recipe's name or file, a Recipe or a Task.")
    name = name or {"text": "classification", "pair": "entailment"}[samples.kind]
    fields, chooses = named_format(name).fields, named_format(name).is_multiple_choice
    if chooses or len(fields) != {"text": 1, "pair": 2}.get(samples.kind, len(fields)):
        cure = "Texts are for classification, pairs for entailment or similarity; else give task."
        raise UsageError(f"{name} does not read a {samples.kind}", cure=cure)
    columns = {field: field for field in fields}
    return TaskConfig(format=name, columns=columns, labels=("no", "yes"))


def _make_examples(reader: Task, samples: _Samples) -> list[Example]:
    """Unlabelled examples; a RowError names the sample that cannot be used."""
    fields = reader.format.fields
    rows = samples.values
    if samples.kind != "row":
        pairs = [[value] if samples.kind == "text" else value for value in rows]
        rows = [dict(zip(fields, map(str, pair), strict=True)) for pair in pairs]
    located = locate_rows(rows, "X")
    built = build_examples(reader.without_labels(), located, "X", labelled=False)
    return [item.example for item in built]


def _name_classes(labels: np.ndarray, reader: Task | None) -> list[str]:
    """A name for each of C labels: the task's own, or the label as text."""
    if labels.dtype.kind == "f":
        check_classification_targets(labels)
    if reader is None:
        names = [as_text(label) for label in labels.tolist()]
        distinct = all(names) and len(set(names)) == len(names)
        return names if distinct else [f"class {k}" for k in range(len(names))]
    if isinstance(reader.labels, Range):
        cure = "For scores use a recipe with a range, and finetune.train."
        raise UsageError("this task has scores, not classes", cure=cure)
    try:
        names = [reader.labels.name(reader.labels.parse(label)) for label in labels.tolist()]
    except RowError as error:
        raise error.located("y") from None
    if len(set(names)) < len(names):
        raise UsageError(f"y has two labels for one class of the task: {labels.tolist()}")
    return names


def _make_training_task(reader: Task, names: list[str]) -> Task:
    """The reader's task with the classes of y."""
    # The name of a choice is its position among the choices, which must not change.
    choices = cast(Classes, reader.labels).names
    return replace(
        reader,
        columns={LABEL: LABEL, **reader.columns},
        labels=Classes.of(choices if reader.format.is_multiple_choice else names),
        metrics=("accuracy",),
        positive=None,
        unlabelled=frozenset(),
    )


def _add_label(example: Example, label: int, where: str) -> Example:
    if example.choices and label >= len(example.choices):
        what = f"the label is choice {label + 1} of {len(example.choices)}"
        raise RowError(what, where=where)
    return replace(example, label=label)


# -- pickles ---------------------------------------------------------------------------------------


def _pack(predictor: Predictor) -> dict[str, bytes]:
    """The contents of the saved model's files, by name."""
    with TemporaryDirectory(prefix="gptft-") as folder:
        predictor.save(Path(folder))
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _unpack(content: Mapping[str, bytes], device: str | None) -> Predictor:
    with TemporaryDirectory(prefix="gptft-") as folder:
        for name, data in content.items():
            files.write_atomically(files.safe_join(folder, name), data)
        return load(folder, device)
