"""A scikit-learn compatible classifier."""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, cast

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from finetune.sklearn.estimator import TextEstimator
from finetune.sklearn.samples import make_examples, parse_samples
from task_formats import Classes, Example, Label, MultiLabel, RowError, Task, UsageError
from task_formats.labels import as_text
from task_formats.task import LABEL


@dataclass(eq=False, repr=False)
class Classifier(ClassifierMixin, TextEstimator):
    """Fine-tunes a pretrained decoder to classify texts, pairs of texts or rows of a task.

    `X` is a list, array, Series or DataFrame of N samples of one kind: texts, pairs of texts, or
    mappings (each row of a DataFrame is one), which `task` describes how to read. `y` holds N
    labels, such as texts or integers; `predict` returns labels of the same type. For several labels
    at once `y` is an (N, C) matrix with 1 where a label applies, else 0, and everything is as in
    scikit-learn's MultiOutputClassifier: `predict` returns such a matrix, and `predict_proba` a
    list of C arrays. A label is predicted if its probability is at least 0.5.

    Every parameter from `learning_rate` to `precision` is a field of `TrainConfig`. None keeps the
    value of the recipe that `task` names, or else the default of gptft.

    A fitted classifier can be pickled and copied; the pickle contains the whole model.

    Args:
        base: Hub id, folder or `tiny`; or a mapping with more fields of `BaseConfig`, such as
            `{"path": "gpt2", "lora": {"rank": 8}}`.
        task: How to read mappings: the name of a shipped recipe, a YAML file, a `Recipe` or a
            `task_formats.Task`. For multiple choice, `y` says which choice is correct; choices
            that never occur in `y` are never predicted. For several labels, the columns of `y` are
            in the order of the task's labels, or have their names.
        format: For pairs: `entailment` (the default), or `similarity` if their order is irrelevant.
        learning_rate: Peak learning rate.
        batch_size: Examples in one update.
        epochs: Passes over the training data.
        lm_coefficient: Weight λ of the auxiliary language-model loss.
        schedule: `linear`, `cosine`, `constant` or `gpt1`: how the learning rate falls.
        warmup: Updates over which the learning rate rises; below 1, a fraction of all updates.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Maximum global norm of the gradient.
        class_weights: `balanced`, or a mapping from labels to weights in the loss.
        label_smoothing: Share of the true label's probability that is spread over all labels.
        head_dropout: Dropout probability before the head.
        max_tokens: Maximum sequence length in tokens.
        incomplete_batch: `keep` or `drop` the last, smaller batch of an epoch.
        layout: How sequences fill a batch; results are equal but for dropout's masks.
        tokens_per_forward: Maximum number of tokens in one forward pass.
        precision: `fp32`, `bf16` or `auto`.
        folder: Keeps the run there, where `finetune.load` reads it. Replaces an earlier run.
        random_state: Seed or RandomState; None uses the seed of the recipe, so that every `fit`
            gives the same model.
        device: Such as `cpu` or `cuda`; None selects the best available device.

    Attributes:
        classes_: (C,) sorted distinct labels; for a matrix, a list of C arrays of 0 and 1.

    Example:
        >>> classifier = Classifier(base="tiny", epochs=1)
        >>> classifier.fit(["a fine film", "a dull film"], ["good", "bad"])  # doctest: +SKIP
    """

    _: KW_ONLY
    class_weights: str | Mapping[Any, float] | None = None
    label_smoothing: float | None = None

    def fit(self, X: Iterable[Any], y: Iterable[Any]) -> "Classifier":
        """Fine-tunes the base.

        Args:
            X: N samples.
            y: N labels, or an (N, C) matrix of zeros and ones.

        Returns:
            The classifier itself.

        Raises:
            UsageError: A sample, label or parameter cannot be used. It is a ValueError.
        """
        kind, samples = parse_samples(X)
        indicator = _find_indicator(y)
        classes, indices = indicator or _find_classes(y)
        check_consistent_length(samples, indices)
        recipe, reader = self._read_task(kind, labels=("no", "yes"))
        own = None if self.task is None else reader
        if indicator:
            task, columns = _make_multi_label_task(reader, _name_columns(classes.tolist(), own))
            labels = [tuple(row) for row in indices[:, np.argsort(columns)].astype(float).tolist()]
        else:
            names = _name_classes(classes.tolist(), own)
            task = _make_training_task(reader, names)
            columns = [cast(Classes, task.labels).parse_class(name) for name in names]
            labels = [columns[k] for k in indices]
        unlabelled = make_examples(reader, kind, samples)
        examples = [
            _add_label(example, label, f"X[{n}]")
            for n, (example, label) in enumerate(zip(unlabelled, labels, strict=True))
        ]
        self._train(recipe, task, examples, reader, kind)
        self._columns = columns
        self.classes_: Any = classes
        if indicator:
            self.classes_ = [np.array([0, 1], indices.dtype)] * len(classes)
        return self

    def predict(self, X: Iterable[Any]) -> np.ndarray:
        """Predicts the most likely class, or all labels with a probability of at least 0.5.

        Args:
            X: N samples of the kind seen by `fit`.

        Returns:
            (N,) labels, or (N, C) zeros and ones, of the type that `y` had.
        """
        table = self._predict_table(X)
        if isinstance(self.classes_, list):
            return (table >= 0.5).astype(self.classes_[0].dtype)
        return self.classes_[table.argmax(axis=1)]

    def predict_proba(self, X: Iterable[Any]) -> np.ndarray | list[np.ndarray]:
        """Predicts the probability of every class, or of every label by itself.

        Args:
            X: N samples of the kind seen by `fit`.

        Returns:
            (N, C) probabilities; columns are ordered as `classes_`. For several labels, a list of C
            arrays: (N, 2) probabilities that a label does not apply, and that it applies.
        """
        table = self._predict_table(X)
        if isinstance(self.classes_, list):
            return [np.stack([1 - column, column], axis=1) for column in table.T]
        return table

    def _predict_table(self, X: Iterable[Any]) -> np.ndarray:
        """(N, C) probabilities of classes, or of several labels by themselves."""
        predictions = list(self._predict_samples(X))
        table = np.zeros((len(predictions), len(self._columns)))
        for n, prediction in enumerate(predictions):
            scores = dict(enumerate(prediction.scores))
            table[n] = [scores.get(column, 0.0) for column in self._columns]
        # A row may offer choices that never occur in y: the others share their probability.
        chooses = self._reader.format.is_multiple_choice
        return table / table.sum(axis=1, keepdims=True) if chooses else table

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


# -- y ---------------------------------------------------------------------------------------------


def _find_indicator(y: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The (C,) columns and the (N, C) zeros and ones of a matrix of several labels, else None."""
    table = y.toarray() if hasattr(y, "toarray") else y
    cure = "Use sklearn.preprocessing.MultiLabelBinarizer, or give one label per sample."
    try:
        table = np.asarray(table)
    except ValueError:  # lists of different lengths
        raise UsageError("y holds lists of labels", cure=cure) from None
    if table.ndim == 1 and any(
        isinstance(label, list | tuple | set | np.ndarray) for label in table
    ):
        raise UsageError("y holds lists of labels", cure=cure)
    if table.ndim != 2 or table.shape[1] < 2:
        return None
    if table.dtype.kind not in "biufO" or not np.isin(table, (0, 1)).all():
        raise UsageError("y has several columns, and not every value is 0 or 1", cure=cure)
    is_object = table.dtype.kind == "O"
    names = np.asarray(y.columns) if hasattr(y, "columns") else np.arange(table.shape[1])
    return names, table.astype(int) if is_object else table


def _find_classes(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """(C,) sorted distinct labels, and the index into them of each of N labels."""
    labels = column_or_1d(y, warn=True)
    for n, label in enumerate(labels.tolist()):
        if label is None or label != label:
            raise UsageError(f"y[{n}] is {label!r}: no label", cure="Leave such samples out.")
    check_classification_targets(labels)
    classes, indices = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UsageError(f"y needs at least two classes and has {classes.tolist()}")
    return classes, indices


# -- the task of y ---------------------------------------------------------------------------------


def _texts_of(labels: list[Any]) -> list[str]:
    """A different text for each of C labels."""
    names = [as_text(label) for label in labels]
    distinct = all(names) and len(set(names)) == len(names)
    return names if distinct else [f"class {k}" for k in range(len(names))]


def _name_classes(labels: list[Any], reader: Task | None) -> list[str]:
    """A name for each of C labels: the task's own, or the label as text."""
    if reader is None:
        return _texts_of(labels)
    if not isinstance(reader.labels, Classes):
        if isinstance(reader.labels, MultiLabel):
            cure = "Give y a column of zeros and ones for each label."
            raise UsageError("this task has several labels per row, and y one", cure=cure)
        cure = "Use finetune.train and finetune.load."
        raise UsageError("this task has scores, not classes", cure=cure)
    try:
        names = [reader.labels.name(reader.labels.parse(label)) for label in labels]
    except RowError as error:
        raise error.located("y") from None
    if len(set(names)) < len(names):
        raise UsageError(f"y has two labels for one class of the task: {labels}")
    return names


def _name_columns(columns: list[Any], reader: Task | None) -> list[str]:
    """A name for each of C columns of zeros and ones: the task's own, or the column as text."""
    if reader is None:
        return _texts_of(columns)
    if not isinstance(reader.labels, MultiLabel):
        what = "y has a column for each label, and this task has one label per row"
        raise UsageError(what, cure="Set task.multi_label, or give one label per sample.")
    names = list(reader.labels.names)
    if len(columns) != len(names):
        raise UsageError(f"y has {len(columns)} columns, and the task {len(names)} labels")
    if columns == list(range(len(columns))):
        return names
    try:
        found = [names[reader.labels.classes.parse_class(column)] for column in columns]
    except RowError as error:
        raise error.located("columns of y") from None
    if len(set(found)) < len(found):
        raise UsageError(f"y has two columns for one label of the task: {columns}")
    return found


def _make_multi_label_task(reader: Task, names: list[str]) -> tuple[Task, list[int]]:
    """The reader's task with a label for each column, and the position of each column in it."""
    labels = reader.labels
    if not isinstance(labels, MultiLabel):
        labels = MultiLabel(Classes.of(names))
    task = replace(
        reader,
        columns={LABEL: LABEL, **reader.columns},
        labels=labels,
        metrics=("micro_f1",),
        positive=None,
        unlabelled=frozenset(),
    )
    return task, [labels.classes.parse_class(name) for name in names]


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


def _add_label(example: Example, label: Label, where: str) -> Example:
    if example.choices and isinstance(label, int) and label >= len(example.choices):
        what = f"the label is choice {label + 1} of {len(example.choices)}"
        raise RowError(what, where=where)
    return replace(example, label=label)
