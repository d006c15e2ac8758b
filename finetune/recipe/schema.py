"""What a run is told: the typed parts of a recipe, with the paper's values as defaults."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from task_formats import (
    FORMATS,
    Classes,
    Format,
    Prompt,
    Range,
    Row,
    Task,
    UsageError,
    named_format,
    suggest,
)
from task_formats.labels import as_text

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
SEED_LIMIT = 2**32
"""Seeds are below this: scikit-learn's and NumPy's generators take no others."""
Seed = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]
Epochs = Annotated[float, Field(gt=0, le=1e6)]
Metric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "mse"]
_FOR_SCORES = ("pearson", "spearman", "mse")


class StrictModel(BaseModel):
    """What every part of a recipe shares: unknown keys are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def fixed_on_resume(self, sections: Iterable[str]) -> dict[str, Any]:
        """Returns dotted key to value of all fields in these sections that are not `resume_safe`.

        A run may only be resumed by a configuration that agrees on these.
        """
        return {
            f"{section}.{name}": value
            for section in sections
            for name, value in getattr(self, section).model_dump().items()
            if not _is_resume_safe(getattr(self, section), name)
        }


def resume_safe(default: Any, **constraints: Any) -> Any:
    """Declares a field that may change when a run is resumed: it does not affect results."""
    return Field(default, json_schema_extra={"resume_safe": True}, **constraints)


def _is_resume_safe(section: BaseModel, name: str) -> bool:
    extra = type(section).model_fields[name].json_schema_extra
    return isinstance(extra, dict) and extra.get("resume_safe") is True


class CustomFormatConfig(StrictModel):
    """Views of one's own, each a list of texts with {fields}."""

    views: tuple[tuple[str, ...], ...]
    """For every view the texts it joins; one that names {choice} is repeated for every choice."""


class PromptConfig(StrictModel):
    """The task asked in words, for zero- and few-shot evaluation."""

    text: str
    """The question, with {fields}."""
    answers: dict[str, str] | str
    """A word for every label name, or one template with {choice}."""
    separator: str = "\n\n"
    """What stands between two solved examples."""
    normalization: Literal["none", "token", "byte", "prior"] = "none"
    """How an answer's log-likelihood is normalised (GPT-3, section 2.4)."""
    prior: str = "Answer: "
    """The context of the unconditional probability, for `normalization: prior`."""
    threshold: Literal["train", "median"] | None = None
    """For two labels and one answer, a text like "{text}": the last label is meant where it is
    likelier than this: the best threshold on the training split, or the questions' median."""


class TaskConfig(StrictModel):
    """How a row becomes an example, what its label may be, and how answers are scored."""

    format: str | CustomFormatConfig
    """classification, entailment, similarity, multiple_choice, or {views: ...}."""
    columns: dict[str, str | tuple[str, ...]]
    """Field to column: a bare name, a {template} over columns, or for choices a list of these."""
    values: dict[str, dict[str | int | float, str]] = {}
    """Column to raw value to the word that stands for it: {question: {cause: because}}."""
    labels: dict[bool | str | int | float, str] | tuple[str, ...] | None = None
    """Raw value to name, in the order of the head's outputs; or the names alone."""
    range: tuple[float, float] | None = None
    """For a score: its lowest and highest value."""
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("accuracy",)
    """The first one, or `select`, decides which state of the model is the best."""
    select: Literal["first", "mean"] = "first"
    """Choose the best state by the first metric or by the mean of all."""
    positive: str | None = None
    """The label name that F1 counts; without it, the last of two."""
    unlabelled: tuple[str | int, ...] = ()
    """Raw labels that mean "no label" in this data set: such rows are left out, and counted."""
    prompt: PromptConfig | None = None
    """The task in words; without it there is no zero- or few-shot evaluation."""
    prompts: dict[str, PromptConfig] = resume_safe({})
    """Other ways to ask, by name: `gptft ask --prompt gpt1`."""

    @model_validator(mode="after")
    def _one_kind_of_label(self) -> "TaskConfig":
        if (self.labels is None) == (self.range is None):
            raise ValueError("give exactly one of labels and range")
        return self

    @model_validator(mode="after")
    def _metrics_that_fit(self) -> "TaskConfig":
        for metric in self.metrics:
            if (metric in _FOR_SCORES) != (self.range is not None):
                raise UsageError(
                    f"the metric {metric} is not for {'a range' if self.range else 'labels'}",
                    cure=f"With a range: {', '.join(_FOR_SCORES)}; with labels: the others.",
                )
        if self.labels is not None:
            names = Classes.of(self.labels).names
            if self.positive is not None and self.positive not in names:
                raise UsageError(
                    f"positive is {self.positive!r}, which is no label",
                    cure=suggest(self.positive, names),
                )
            if "f1" in self.metrics and self.positive is None and len(names) > 2:
                raise UsageError(
                    "f1 is about one label, and there are more than two",
                    cure="Name it with positive, or take macro_f1.",
                )
        return self

    @classmethod
    def from_task(cls, task: Task) -> "TaskConfig":
        """How a recipe says what a Task is; without its prompt, and without its code."""
        named = next((name for name, known in FORMATS.items() if known == task.format), None)
        bounds = (task.labels.low, task.labels.high) if isinstance(task.labels, Range) else None
        return cls(
            format=named or CustomFormatConfig(views=task.format.views),
            columns={
                name: column if isinstance(column, str) else tuple(column)
                for name, column in task.columns.items()
            },
            values={column: dict(words) for column, words in task.values.items()},
            labels=dict(task.labels.raw) if isinstance(task.labels, Classes) else None,
            range=bounds,
            metrics=cast(Any, task.metrics) or (("pearson",) if bounds else ("accuracy",)),
            positive=task.positive,
            unlabelled=tuple(sorted(task.unlabelled)),
        )

    def with_prompt(self, name: str) -> "TaskConfig":
        """The same task asked with another of its prompts; UsageError where it has none such."""
        if name not in self.prompts:
            cure = suggest(name, self.prompts) if self.prompts else "It has none besides its own."
            raise UsageError(f"the task has no prompt {name!r}", where="task.prompts", cure=cure)
        return self.model_copy(update={"prompt": self.prompts[name]})

    def build(self, read: Callable[[Row], Row] | None = None) -> Task:
        """The task itself; UsageError where the parts do not fit together."""
        custom = self.format
        return Task(
            format=named_format(custom) if isinstance(custom, str) else Format(custom.views),
            columns=self.columns,
            labels=Range(*self.range) if self.range else Classes.of(self.labels or ()),
            metrics=self.metrics,
            values={
                column: {as_text(raw): word for raw, word in words.items()}
                for column, words in self.values.items()
            },
            positive=self.positive,
            prompt=Prompt(**self.prompt.model_dump()) if self.prompt else None,
            unlabelled=frozenset(map(str, self.unlabelled)),
            read=read,
        )

    def resolve(self, task: Task | None) -> Task:
        """Returns a task defined in Python, scored as this recipe says, or else `build()`."""
        if task is None:
            return self.build()
        positive = self.positive or task.positive
        return dataclasses.replace(task, metrics=self.metrics, positive=positive)


class LoraConfig(StrictModel):
    """Low-rank adapters through peft; head and new token rows are trained in full."""

    rank: Annotated[int, Field(gt=0, le=4096)] = 8
    """Width of every adapter."""
    alpha: float = Field(16.0, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout on an adapter's input."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter."""


class BaseConfig(StrictModel):
    """The pretrained decoder."""

    path: str = "gpt2"
    """A hub id, a local folder, or the shipped base `tiny`."""
    revision: str | None = None
    """A branch, tag or commit on the hub."""
    from_scratch: bool = False
    """Keep only the shape and the tokenizer; draw the weights anew (the paper's ablation)."""
    dropout: Fraction | None = 0.1
    """Every dropout of the decoder; null leaves what its own configuration says."""
    trust_remote_code: bool = resume_safe(False)
    """Run Python code that comes with the base. Only for sources you trust."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and leave the decoder's own weights alone; null trains all."""


class DataConfig(StrictModel):
    """Where rows come from: a hub data set, a folder, or files beside the recipe."""

    path: str | None = None
    """A hub data set, or a local folder (`--data`). Without it the splits below are files."""
    name: str | None = None
    """The configuration of a hub data set, and the folder's name in a local copy."""
    revision: str | None = None
    """A branch, tag or commit of a hub data set."""
    train: str | None = "train"
    """The split, or file, that is trained on."""
    evaluate: str | None = "validation"
    """The split, or file, that is evaluated on."""
    predict: str | None = None
    """The split, or file, without labels."""
    extra: dict[str, str] = {}
    """Further evaluation splits or files by name; `ax/test` is the split test of the name ax."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Stop at a row that cannot be used, or leave it out, count it and list it."""
    limit: Positive | None = None
    """Use only the first rows of every split."""

    @model_validator(mode="after")
    def _names_of_their_own(self) -> "DataConfig":
        if taken := {"train", "evaluate", self.evaluate} & self.extra.keys():
            raise UsageError(
                f"a split of data.extra is called {max(map(str, taken))!r}, as another one is",
                cure="Give it a name of its own: its scores would take the other's place.",
            )
        return self


class TrainConfig(StrictModel):
    """How to train. Defaults are those of GPT-1, section 4.1."""

    learning_rate: float = Field(6.25e-5, gt=0)
    """The highest rate, reached after the warm-up."""
    batch_size: Positive = 32
    """Examples in one update, over all processes."""
    epochs: Epochs = 3
    """Passes over the training split; a part of one is fine."""
    fraction: float = Field(1, gt=0, le=1)
    """Part of the labelled training rows: stratified by label and drawn by the seed. With one seed
    a smaller part lies within every larger one."""
    lm_coefficient: float = Field(0.5, ge=0)
    """λ of L3 = L2 + λ · L1; 0 computes no language-model loss at all."""
    warmup: Fraction = 0.002
    """Part of all updates over which the rate climbs from 0; it then falls linearly to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay on every tensor with more than one dimension."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's memory of gradients and of their squares."""
    epsilon: float = Field(1e-8, gt=0)
    """Adam's guard against division by zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this global norm."""
    head_dropout: Fraction = 0.1
    """Dropout on the state that the head reads."""
    max_tokens: Positive = 512
    """Longest view, special tokens included."""
    incomplete_batch: Literal["keep", "drop"] = "keep"
    """The rest of an epoch: a smaller update, or none as in the original code."""
    evaluations: Positive = 1
    """Evaluations per epoch."""
    patience: Positive | None = resume_safe(None)
    """Stop after this many evaluations without a better score."""
    seed: Seed = 42
    """Decides the head's first weights, the order of examples, and dropout."""
    layout: Literal["auto", "separate", "shared", "packed"] = resume_safe("auto")
    """How views fill rows. All give the same result; auto takes the fastest the base allows."""
    tokens_per_forward: Positive | None = resume_safe(None)
    """Most tokens in one forward pass; an update is split as needed, with the same gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes in bfloat16 over fp32 weights; auto takes it where hardware is made for it."""
    deterministic: bool = False
    """On a GPU: the same bits every time, more slowly. A CPU always gives the same bits."""
    compile: bool = False
    """Compile the decoder's blocks with torch.compile: slow to start, then faster."""
    most_refused: Positive = resume_safe(10)
    """Updates in a row refused for numbers that are not finite after which the run stops."""
    checkpoint_minutes: float | None = resume_safe(10, gt=0)
    """Minutes between checkpoints, besides one per epoch; null here and below: only on a signal."""
    checkpoint_updates: Positive | None = resume_safe(None)
    """Updates between checkpoints, instead of or besides the minutes."""


class Recipe(StrictModel):
    """Everything a run is told. What is not said is the paper's."""

    about: str = ""
    """One line for `gptft tasks`."""
    task: TaskConfig
    """How a row becomes an example, and how answers are scored."""
    base: BaseConfig = BaseConfig()
    """The pretrained decoder."""
    data: DataConfig = DataConfig()
    """Where rows come from."""
    train: TrainConfig = TrainConfig()
    """How to train."""
