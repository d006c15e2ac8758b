"""The typed sections of a recipe. Defaults are those of the profile "modern"."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from finetune.evaluation.metrics import METRICS
from finetune.recipe.yaml_documents import write_document
from task_formats import (
    FORMATS,
    Classes,
    Format,
    Labels,
    MultiLabel,
    Prompt,
    Range,
    Row,
    Task,
    UsageError,
    Windows,
    named_format,
    suggest,
)
from task_formats.labels import as_text

# Strict numbers: Python would take true for 1.
Positive = Annotated[int, Field(strict=True, gt=0, lt=2**31)]
Number = Annotated[float, Field(strict=True)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
SEED_LIMIT = 2**32
"""Seeds are below this: the generators of scikit-learn and NumPy accept no others."""
Seed = Annotated[int, Field(strict=True, ge=0, lt=SEED_LIMIT)]
Epochs = Annotated[float, Field(strict=True, gt=0, le=1e6)]
RawLabel = bool | str | int | float
"""A value of a column, as the data has it."""
MetricName = Annotated[str, Field(json_schema_extra={"enum": [*METRICS]})]
Schedule = Literal["linear", "cosine", "constant", "gpt1"]
OptimizerName = Literal["adamw", "adam", "adafactor", "adamw_8bit"]
FileFormat = Literal["csv", "tsv", "jsonl", "json", "parquet", "arrow", "xlsx"]
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "\\t": "\t"}
"""Words for characters that are awkward to type."""
_RESUME_SAFE: dict[str, Any] = {"resume_safe": True}


class StrictModel(BaseModel):
    """Base class of all sections: unknown keys are errors, and values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def to_yaml(self) -> str:
        """Returns YAML with every value written out; it loads back equal."""
        return write_document(self.model_dump())

    def fixed_on_resume(self, sections: Iterable[str]) -> dict[str, Any]:
        """Returns dotted key to value of the fields that must not change when a run is resumed."""
        return {
            f"{section}.{name}": value
            for section in sections
            for name, value in getattr(self, section).fixed_values().items()
        }

    def fixed_values(self) -> dict[str, Any]:
        """Returns the fields of a section that must not change when a run is resumed."""
        return {
            name: value
            for name, value in self.model_dump().items()
            if type(self).model_fields[name].json_schema_extra != _RESUME_SAFE
        }


def resume_safe(default: Any, **constraints: Any) -> Any:
    """Declares a field that may change when a run is resumed.

    It changes no result but the draws of dropout, or it is a path whose content is compared.
    """
    return Field(default, json_schema_extra=_RESUME_SAFE, **constraints)


class CustomFormatConfig(StrictModel):
    """A format of your own."""

    views: tuple[tuple[str, ...], ...]
    """Views, each a list of texts with {fields}. A view with {choice} is repeated per choice."""


class PromptConfig(StrictModel):
    """The task in words, for zero- and few-shot evaluation."""

    text: str
    """The question, with {fields}."""
    answers: dict[str, str] | str
    """Label name to words, or one template with {choice}."""
    separator: str = "\n\n"
    """Text between demonstrations."""
    normalization: Literal["none", "token", "byte", "prior"] = "none"
    """How the log-likelihood of an answer is normalized (GPT-3, section 2.4)."""
    prior: str = "Answer: "
    """Context of the unconditional probability, for `normalization: prior`."""
    threshold: Literal["train", "median"] | None = None
    """The log-likelihood of the one answer above which the second of two labels is predicted."""


class WindowsConfig(StrictModel):
    """How texts that are longer than `train.max_tokens` are read."""

    stride: Positive = 128
    """Tokens from the start of a window to the start of the next one."""
    reduce: Literal["mean", "max"] = "mean"
    """The logits of an example are the mean or the maximum of those of its windows."""
    most: Positive = 16
    """Most windows of an example, which bounds memory; what they do not reach is cut off."""


class TaskConfig(StrictModel):
    """How a row becomes an example, its labels, and the metrics."""

    format: str | CustomFormatConfig
    """classification, entailment, similarity, multiple_choice, or {views: ...}."""
    columns: dict[str, str | tuple[str, ...]]
    """Field to column: a name, a {template} over columns, or for choices a list of these. With
    `multi_label` or `soft_labels`, label may be a list of columns."""
    values: dict[str, dict[RawLabel, str]] = {}
    """Column to words that replace its values: {question: {cause: because}}."""
    labels: dict[RawLabel, str] | tuple[str, ...] | None = None
    """Raw value to label name, in the order of the head's outputs; or a list of names."""
    multi_label: bool = False
    """Rows have any number of the labels: a list of them, text with separators, or with
    `columns.label: [joy, anger]` a column of zeros and ones for each."""
    separator: Annotated[str, Field(min_length=1)] = ","
    """Text between two labels of a row, for `multi_label`."""
    ordinal: bool = False
    """The labels are in order, from low to high, as in ratings: the head has cumulative logits, and
    metrics of scores take a label as its position 0, 1, ..."""
    soft_labels: bool = False
    """The label of a row is a probability for every class, or a number of votes: a list in the
    order of the labels, a table {label: number}, or with `columns.label: [no, yes]` a column for
    each. The loss is the cross-entropy against it; metrics take the most probable class."""
    range: tuple[Number, Number] | None = None
    """Lowest and highest value of a score."""
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] = ("accuracy",)
    """Metrics to compute. The first one, or `select`, decides which checkpoint is the best."""
    select: Literal["first", "mean"] = "first"
    """Select the best checkpoint by the first metric or by the mean of all."""
    positive: str | None = None
    """The label that F1 counts [default: the second of two]."""
    unlabelled: tuple[RawLabel, ...] = ()
    """Raw labels that mean "no label" in this data set. Such rows are left out and counted."""
    windows: WindowsConfig | None = None
    """Read a text that is too long in overlapping windows; null truncates it. Of two texts the one
    that would lose more is read in windows, of multiple choice the context."""
    prompt: PromptConfig | None = resume_safe(None)
    """The task in words. Without it there is no zero- or few-shot evaluation."""
    prompts: dict[str, PromptConfig] = resume_safe({})
    """Further prompts by name, for `gptft prompt --prompt NAME`."""

    @model_validator(mode="after")
    def _check(self) -> "TaskConfig":
        self._check_labels()
        self._check_metrics()
        self.build()
        for name in self.prompts:
            self.with_prompt(name).build()
        return self

    def _check_labels(self) -> None:
        """Raises UsageError if the settings of the labels exclude each other."""
        if (self.labels is None) == (self.range is None):
            raise UsageError("give exactly one of labels and range")
        if self.multi_label and (self.labels is None or self.positive is not None):
            what = "needs labels" if self.labels is None else "has no positive label"
            raise UsageError(f"multi_label {what}", cure="Correct task.multi_label.")
        if self.separator != "," and not self.multi_label:
            raise UsageError("separator is for several labels", cure="Set task.multi_label.")
        if self.soft_labels and (self.labels is None or self.multi_label):
            what = "soft_labels needs labels that exclude each other"
            raise UsageError(what, cure="Leave task.soft_labels out.")
        if self.ordinal and (self.labels is None or self.multi_label):
            raise UsageError("ordinal needs labels, one per row", cure="Leave task.ordinal out.")

    def _check_metrics(self) -> None:
        """Raises UsageError if a metric is not one for these labels."""
        kind = self._build_labels().kind
        kinds = {kind, "scores"} if self.ordinal else {kind}
        metrics = [name for name, metric in METRICS.items() if kinds & {*metric.labels}]
        for name in self.metrics:
            if name not in metrics:
                named = "several labels" if self.multi_label else kind
                raise UsageError(
                    f"{name!r} is not a metric for {named}", cure=suggest(name, metrics)
                )
        if self.labels is None:
            return
        names = Classes.of(self.labels).names
        if self.positive is not None and self.positive not in names:
            what = f"positive is not a label (got {self.positive!r})"
            raise UsageError(what, cure=suggest(self.positive, names))
        if "f1" in self.metrics and self.positive is None and len(names) > 2:
            what = "f1 needs one positive label, and there are more than two labels"
            raise UsageError(what, cure="Set task.positive, or use macro_f1.")

    @classmethod
    def from_task(cls, task: Task) -> "TaskConfig":
        """Describes a Task, without its prompt and its code."""
        named = next((name for name, known in FORMATS.items() if known == task.format), None)
        bounds = (task.labels.low, task.labels.high) if isinstance(task.labels, Range) else None
        return cls(
            format=named or CustomFormatConfig(views=task.format.views),
            columns=cast(Any, task.columns),
            values=cast(Any, task.values),
            labels=None if isinstance(task.labels, Range) else dict(task.labels.raw),
            multi_label=isinstance(task.labels, MultiLabel),
            separator=task.labels.separator if isinstance(task.labels, MultiLabel) else ",",
            ordinal=isinstance(task.labels, Classes) and task.labels.ordered,
            soft_labels=isinstance(task.labels, Classes) and task.labels.soft,
            range=bounds,
            metrics=task.metrics or (("pearson",) if bounds else ("accuracy",)),
            positive=task.positive,
            unlabelled=tuple(sorted(task.unlabelled)),
            windows=WindowsConfig(**dataclasses.asdict(task.windows)) if task.windows else None,
        )

    def fixed_values(self) -> dict[str, Any]:
        """Leaves out what only the prompt reads, and metrics that do not select the best model."""
        task = self.build().without_prompt()
        metrics = self.metrics if self.select == "mean" else self.metrics[:1]
        fixed = {"columns": task.columns, "values": task.values, "metrics": metrics}
        return super().fixed_values() | fixed

    def with_prompt(self, name: str) -> "TaskConfig":
        """Returns the task with another of its prompts; UsageError if there is none."""
        if name not in self.prompts:
            cure = suggest(name, self.prompts) if self.prompts else "It has no `prompts`."
            raise UsageError(f"the task has no prompt {name!r}", where="task.prompts", cure=cure)
        return self.model_copy(update={"prompt": self.prompts[name]})

    def build(self, read: Callable[[Row], Row] | None = None) -> Task:
        """Builds the task; UsageError if its parts do not fit together."""
        views = self.format
        return Task(
            format=named_format(views) if isinstance(views, str) else Format(views.views),
            columns=self.columns,
            labels=self._build_labels(),
            metrics=self.metrics,
            values={
                column: {as_text(raw): word for raw, word in words.items()}
                for column, words in self.values.items()
            },
            positive=self.positive,
            prompt=Prompt(**self.prompt.model_dump()) if self.prompt else None,
            unlabelled=frozenset(map(as_text, self.unlabelled)),
            convert_row=read,
            windows=self._build_windows(),
        )

    def _build_windows(self) -> Windows | None:
        return Windows(**self.windows.model_dump()) if self.windows else None

    def _build_labels(self) -> Labels:
        if self.range:
            return Range(*self.range)
        classes = Classes.of(self.labels or ())
        classes = dataclasses.replace(classes, ordered=self.ordinal, soft=self.soft_labels)
        return MultiLabel(classes, self.separator) if self.multi_label else classes

    def resolve(self, task: Task | None) -> Task:
        """Returns a task defined in Python, scored as this recipe says, or else `build()`."""
        if task is None:
            return self.build()
        positive = self.positive or task.positive
        windows = self._build_windows() or task.windows
        return dataclasses.replace(task, metrics=self.metrics, positive=positive, windows=windows)


class LoraConfig(StrictModel):
    """Low-rank adapters (LoRA). The head and new token embeddings are trained in full."""

    rank: Annotated[int, Field(strict=True, gt=0, le=4096)] = 8
    """Rank of the adapters."""
    alpha: PositiveFloat = 16.0
    """The output of an adapter is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on the input of an adapter."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter."""


class HeadConfig(StrictModel):
    """The layer that turns the states of the decoder into logits."""

    bias: bool = True
    """Train a bias. Without one, `gptft export` writes models of every family for sequence
    classification in transformers, whose head has no bias."""
    standardize_scores: bool = True
    """Train a head for scores on their distance from the mean of the training scores, in standard
    deviations, so that their unit does not matter. The saved head has scores in their own unit."""
    center_states: bool = False
    """Train a head for the distance of the states from their mean before training, so that the
    first updates do not move the logits of all examples together. The saved head, whose bias takes
    the mean up, reads plain states. Without effect on choices, and without a bias."""


class BaseConfig(StrictModel):
    """The pretrained decoder."""

    path: str = resume_safe("gpt2")
    """A hub id, a local folder, a GGUF file, the shipped base `tiny`, or `smollm2-135m`."""
    revision: str | None = resume_safe(None)
    """A branch, tag or commit on the hub."""
    from_scratch: bool = False
    """Use only the configuration and tokenizer, and initialize the weights at random."""
    dropout: Fraction | None = None
    """All dropout of the decoder; null keeps the values of its configuration."""
    trust_remote_code: bool = resume_safe(False)
    """Run Python code that comes with the base. Only for sources you trust."""
    new_tokens: Literal["copy", "mean", "random"] = "copy"
    """How the embeddings of the start, delimiter and extract tokens start: as copies of the base's
    own token between documents (start) and of its newline (the others), at the mean of all rows
    plus small noise, or drawn from N(0, 0.02). GPT-1's own base and `from_scratch` always draw
    them, as in the paper."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the decoder's weights; null trains all weights."""
    quantization: Literal["nf4"] | None = None
    """Keep the frozen weights of the linear layers in 4 bits (QLoRA), for `lora`; nf4 is its data
    type NormalFloat. Adapters, head, embeddings and norms stay in fp32."""

    @model_validator(mode="after")
    def _check_quantization(self) -> "BaseConfig":
        if self.quantization is not None:
            if self.lora is None:
                what, cure = "weights in 4 bits cannot be trained", "Set base.lora={} too."
                raise UsageError(what, where="base.quantization", cure=cure)
            if self.from_scratch:
                what, cure = "from_scratch has no weights to quantize", "Leave one of them out."
                raise UsageError(what, where="base.quantization", cure=cure)
        return self


HELD_OUT = "held_out"
"""Name of the evaluation split that `data.hold_out` makes."""


class Fold(StrictModel):
    """One of several equal parts of the training rows."""

    fold: Positive
    """Which part, from 1."""
    folds: Annotated[int, Field(strict=True, ge=2, lt=2**31)]
    """Number of parts."""

    @model_validator(mode="after")
    def _check(self) -> "Fold":
        if self.fold > self.folds:
            what = f"fold {self.fold} of {self.folds}"
            raise UsageError(what, cure="Folds are counted from 1.")
        return self


class DataConfig(StrictModel):
    """Where rows come from: a hub data set, a folder, or files."""

    path: str | None = None
    """A hub data set, a local folder, or a file of splits: JSON such as {"train": [...], "test":
    [...]}, or a workbook with a sheet for each. Without it, the splits below are files."""
    name: str | None = None
    """The configuration of a hub data set, and its folder in a local copy."""
    revision: str | None = None
    """A branch, tag or commit of a hub data set."""
    train: str | None = "train"
    """The training split or file."""
    evaluate: str | None = "validation"
    """The evaluation split or file."""
    predict: str | None = None
    """The split or file to predict; it needs no labels."""
    extra: dict[str, str] = {}
    """Further evaluation splits or files by name; `ax/test` is split test of configuration ax."""
    hold_out: Annotated[float, Field(strict=True, gt=0, lt=1)] | Fold | None = None
    """Evaluate on a part of the training rows, and train on the others: a fraction such as 0.1, or
    one of several folds, such as {fold: 1, folds: 5}. Every label has its share of the part, and
    rows with equal texts stay together."""
    group_by: str | None = None
    """Column whose equal values stay together when rows are held out, such as an author."""
    split_seed: Seed = 42
    """Decides which rows are held out."""
    format: FileFormat | None = None
    """The kind of the files, where their names do not end in it."""
    delimiter: str | None = None
    """The character between the columns of CSV and TSV files, or comma, semicolon, tab or bar;
    null finds it from the file."""
    encoding: str | None = None
    """The encoding of text files, such as cp1252; null is UTF-8, or UTF-16 if a file begins so."""
    header: bool | None = None
    """Whether CSV and TSV files begin with the names of the columns [default: yes]; without them
    columns are called column_1, column_2, ..."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Stop at an invalid row, or skip, count and list it."""
    limit: Positive | None = None
    """Use at most this number of rows of every split: the first ones, or a stratified part of rows
    that are sorted by label."""

    @model_validator(mode="before")
    @classmethod
    def _no_default_files(cls, data: Any) -> Any:
        """Without a data set, `train` and `validation` are not the names of splits.

        Nor is `validation` used if rows are held out.
        """
        if isinstance(data, dict) and data.get("path") is None:
            return {"train": None, "evaluate": None, **data}
        if isinstance(data, dict) and data.get("hold_out") is not None:
            return {"evaluate": None, **data}
        return data

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, delimiter: str | None) -> str | None:
        if delimiter is None:
            return None
        character = DELIMITERS.get(delimiter, delimiter)
        if len(character) != 1 or character in '"\r\n\0':
            what = f"{delimiter!r} is not a character that can be between columns"
            raise UsageError(what, cure="Give one character, or comma, semicolon, tab or bar.")
        return character

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except (LookupError, ValueError):
            cure = "Common ones: utf-8, cp1252 (Windows), latin-1, utf-16, shift_jis, gb18030."
            raise UsageError(f"unknown encoding {encoding!r}", cure=cure) from None
        return encoding

    @model_validator(mode="after")
    def _check_names(self) -> "DataConfig":
        if self.hold_out is not None and self.evaluate is not None:
            what = f"hold_out and evaluate ({self.evaluate}) exclude each other"
            cure = "Leave hold_out out, or set data.evaluate to null."
            raise UsageError(what, where="data.hold_out", cure=cure)
        if self.hold_out is not None and self.train is None:
            what, cure = "there are no training rows to hold out from", "Set data.train."
            raise UsageError(what, where="data.hold_out", cure=cure)
        if taken := {"train", "evaluate", self.evaluation_split} & self.extra.keys():
            what = f"data.extra uses the name of another split: {max(map(str, taken))!r}"
            raise UsageError(what, cure="Rename it: scores are saved by the name of the split.")
        return self

    @property
    def evaluation_split(self) -> str | None:
        """The split that selects the best model: `evaluate`, or the held-out rows."""
        return self.evaluate if self.hold_out is None else HELD_OUT


class CommonTrainConfig(StrictModel):
    """Settings that fine-tuning and pre-training share."""

    learning_rate: PositiveFloat
    batch_size: Positive
    epochs: Epochs | None
    optimizer: OptimizerName = "adamw"
    """adamw is PyTorch's; adam is that of GPT-1's code, with its place of epsilon and decay;
    adafactor (Shazeer and Stern) needs half the memory of these or less, and its learning rate is
    relative to the size of the weights; adamw_8bit is AdamW whose moments take a quarter of the
    memory (Dettmers et al.). These two cannot be sharded (FSDP)."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay, on every tensor with more than one dimension."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    epsilon: PositiveFloat = 1e-8
    """Adam's epsilon."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip gradients to this global norm."""
    seed: Seed = 42
    """Random seed."""
    noise_scale: bool = resume_safe(False)
    """Measure the gradient noise scale, which tells good batch sizes.

    An update of a single forward pass is made in two, so with dropout other masks are drawn.
    Gradients need their memory twice.
    """
    tokens_per_forward: Positive | None = resume_safe(None)
    """Maximum number of tokens in a forward pass [default: by memory].

    Without dropout the gradient is the same; with dropout, other masks are drawn.
    """
    activation_checkpointing: bool = resume_safe(False)
    """Compute the activations of each block again in the backward pass: less memory, about a third
    more time, the same gradients."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes in bfloat16 with fp32 weights; auto uses it where hardware supports it."""
    deterministic: bool = False
    """Use deterministic GPU kernels, which are slower. A CPU is always deterministic."""
    most_refused: Positive = resume_safe(10)
    """Stop after this many consecutive updates with non-finite gradients."""
    checkpoint_minutes: PositiveFloat | None = resume_safe(10)
    """Minutes between checkpoints, in addition to one per epoch."""
    checkpoint_updates: Positive | None = resume_safe(None)
    """Updates between checkpoints. If it and the minutes are null, only a signal causes one."""
    keep_checkpoints: Annotated[int, Field(strict=True, ge=0)] = resume_safe(1)
    """Checkpoints that a finished run keeps, the newest ones: with one it can be trained longer; 0
    saves the space of about three models. While a run trains it has at least the newest two."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = resume_safe(())
    """Experiment trackers that log the run, through Accelerate."""
    tracker_project: Annotated[str, Field(min_length=1)] = resume_safe("gptft")
    """Project of the trackers that have projects; MLflow calls it experiment."""


_LEARNING_RATE = 1e-4
_ADAFACTOR_RATE = 1e-2
_LORA_FACTOR = 5
"""Adapters need a higher learning rate than the weights themselves."""


class TrainConfig(CommonTrainConfig):
    """How to train."""

    learning_rate: PositiveFloat = _LEARNING_RATE
    """Peak learning rate, reached after the warm-up. With LoRA the default is five times as high,
    and with Adafactor it is 1e-2.
    The default suits bases of about 100 million parameters; a billion needs less, 2e-5."""
    batch_size: Positive = 32
    """Examples per update, over all processes."""
    epochs: Epochs | None = None
    """Number of epochs; may be fractional [default: 3, or for few rows as many as make 100 updates,
    but at most 12]."""
    fraction: Annotated[float, Field(strict=True, gt=0, le=1)] = 1
    """Fraction of the labelled training rows to use, stratified by label and drawn by the seed."""
    lm_coefficient: NonNegativeFloat = 0
    """λ of L3 = L2 + λ · L1; 0 computes no language-model loss."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up: linear, cosine or constant; gpt1 is the
    paper's, whose last update has the rate 0."""
    warmup: Fraction | Positive = 0.1
    """Linear warm-up: a number of updates, or below 1 a fraction of all updates."""
    class_weights: Literal["balanced"] | dict[RawLabel, PositiveFloat] | None = None
    """Weights of the classes in the loss: a table from label to weight (labels that are not in it
    have weight 1), or balanced: inversely proportional to their number of training rows. With
    `multi_label`, the weight of a label counts where it applies, and balanced is the number of rows
    without the label per row with it."""
    label_smoothing: Fraction = 0
    """Share of the true label's probability that the loss spreads evenly over all labels."""
    freeze_layers: Annotated[int, Field(strict=True, ge=0)] = 0
    """Do not train the embeddings and this number of the lowest blocks."""
    layer_decay: Annotated[float, Field(strict=True, gt=0, le=1)] = 1
    """Factor of the learning rate from each block to the one below, and to the embeddings."""
    head_dropout: Fraction = 0
    """Dropout on the input of the head."""
    max_tokens: Positive = 512
    """Maximum sequence length in tokens, special tokens included."""
    incomplete_batch: Literal["keep", "drop"] = "keep"
    """Keep or drop the incomplete last batch of an epoch (the original code drops it)."""
    stratify: bool = False
    """Give each update about its share of the rows of every class, so that gradients vary less.
    Rows with other labels are just shuffled."""
    evaluations: Positive = 1
    """Evaluations per epoch."""
    patience: Positive | None = resume_safe(None)
    """Stop after this many evaluations without improvement."""
    layout: Literal["auto", "separate", "shared", "packed"] = resume_safe("auto")
    """How views are arranged in batches; auto takes the fastest possible.

    Without dropout results are equal; with dropout, other masks are drawn.
    """
    compile: bool = False
    """Compile the blocks of the decoder with torch.compile: slower to start, then faster."""


Profile = Literal["modern", "paper"]
_PAPER: dict[str, dict[str, Any]] = {
    "base": {"dropout": 0.1, "new_tokens": "mean"},
    "head": {"standardize_scores": False},
    "train": {
        "learning_rate": 6.25e-5,
        "epochs": 3,
        "lm_coefficient": 0.5,
        "optimizer": "adam",
        "schedule": "gpt1",
        "warmup": 0.002,
        "head_dropout": 0.1,
    },
}
"""The defaults of GPT-1 (section 4.1) where they differ from those of the sections."""


class Recipe(StrictModel):
    """A complete fine-tuning run. Values that are not given are those of its profile."""

    about: str = ""
    """One line for `gptft tasks`."""
    profile: Profile = "modern"
    """Where defaults come from: "modern" suits today's bases (docs/results.md), "paper" has the
    values of GPT-1, section 4.1."""
    task: TaskConfig
    """How a row becomes an example, its labels, and the metrics."""
    base: BaseConfig = BaseConfig()
    """The pretrained decoder."""
    head: HeadConfig = HeadConfig()
    """The layer that turns the states of the decoder into logits."""
    data: DataConfig = DataConfig()
    """Where rows come from."""
    train: TrainConfig = TrainConfig()
    """How to train."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: Any) -> Any:
        """Gives the sections the defaults that depend on the profile, the optimizer and LoRA."""
        if not isinstance(data, dict):
            return data
        given = {name: data.get(name, {}) for name in _PAPER}
        sections = {
            name: section.model_dump(exclude_unset=True)
            if isinstance(section, StrictModel)
            else section
            for name, section in given.items()
        }
        if not all(isinstance(section, dict) for section in sections.values()):
            return data  # Its own error is clearer.
        defaults = _PAPER if data.get("profile") == "paper" else {name: {} for name in _PAPER}
        filled = {name: {**defaults[name], **section} for name, section in sections.items()}
        has_rate = "learning_rate" in sections["train"]
        if sections["train"].get("optimizer") == "adafactor" and not has_rate:
            filled["train"]["learning_rate"] = _ADAFACTOR_RATE
        elif sections["base"].get("lora") is not None and not has_rate:
            rate = filled["train"].get("learning_rate", _LEARNING_RATE)
            filled["train"]["learning_rate"] = _LORA_FACTOR * rate
        changed = {name: filled[name] for name in filled if filled[name] != sections[name]}
        return {**data, **changed}

    def with_train(self, **values: Any) -> "Recipe":
        """Returns the recipe with other values of `train`, which are not validated."""
        return self.model_copy(update={"train": self.train.model_copy(update=values)})

    @model_validator(mode="after")
    def _check_loss(self) -> "Recipe":
        """Checks class weights and label smoothing against the labels."""
        weights = self.train.class_weights
        if self.task.range is not None:
            for name in ("class_weights", "label_smoothing"):
                if getattr(self.train, name):
                    what, cure = "a score has no classes", f"Leave train.{name} out."
                    raise UsageError(what, where=f"train.{name}", cure=cure)
        elif weights and self.task.build().format.is_multiple_choice:
            what, cure = "choices have no classes to weigh", "Leave train.class_weights out."
            raise UsageError(what, where="train.class_weights", cure=cure)
        elif isinstance(weights, dict):
            classes = Classes.of(self.task.labels or ())
            for label in weights:
                try:
                    classes.parse(label)
                except UsageError as error:
                    cure = suggest(str(label), classes.names)
                    raise UsageError(error.what, where="train.class_weights", cure=cure) from None
        return self
