"""The plan of a scaling study: sizes of decoders, amounts of text, seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from finetune.pretraining.plan import (
    CorpusConfig,
    Plan,
    PretrainConfig,
    ShapeConfig,
    TokenizerConfig,
    find_stable_end,
    resolve_plan_paths,
)
from finetune.recipe.loading import find_yaml_file, shipped_folder
from finetune.recipe.schema import Number, Positive, PositiveFloat, Seed, StrictModel
from finetune.recipe.validation import apply_overrides, validate
from finetune.recipe.yaml_documents import read_document
from finetune.scaling.flops import count_flops
from task_formats import UsageError

_SET_BY_CELLS = ("learning_rate", "seed", "epochs", "updates", "evaluations")


class SizeConfig(StrictModel):
    """The size of a decoder; everything else is in `shape`."""

    layers: Annotated[int, Field(strict=True, gt=0, le=1024)]
    width: Positive
    heads: Positive
    key_value_heads: Positive | None = None
    """Fewer than `heads` for grouped-query attention; llama only."""
    feed_forward: Positive | None = None
    """Inner width; default: 4 · width, for llama 8/3 · width in steps of 64."""


class LearningRateConfig(StrictModel):
    """The peak learning rate of every size: value · (size's width / width)^exponent · factor."""

    value: PositiveFloat
    width: Positive | None = None
    """The width for which `value` holds; needed with an exponent."""
    exponent: Number = 0.0
    """0: the same rate for all sizes; -0.5 or -1: lower rates for wider ones."""
    factors: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1.0,)
    """A sweep: every run is made with each of these, and the best one counts."""

    @model_validator(mode="after")
    def _has_width(self) -> "LearningRateConfig":
        if self.exponent and self.width is None:
            raise UsageError("learning_rate.exponent needs learning_rate.width")
        return self

    def rate(self, width: int, factor: float) -> float:
        """The peak learning rate of a size."""
        return float(self.value * (width / (self.width or width)) ** self.exponent * factor)


class StudyPlan(StrictModel):
    """A grid of pre-training runs: sizes x tokens (or compute budgets) x seeds."""

    about: str = ""
    """One line of description."""
    corpus: CorpusConfig
    """The text, as in a plan of gptft pretrain; `evaluate` is needed."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    shape: ShapeConfig = ShapeConfig()
    """What all sizes have in common: style, positions, tied."""
    sizes: Annotated[tuple[SizeConfig, ...], Field(min_length=1)]
    """The decoders."""
    tokens: tuple[PositiveFloat, ...] = ()
    """Training tokens D; every size is trained on each."""
    budgets: tuple[PositiveFloat, ...] = ()
    """Instead of `tokens`: compute in FLOPs, which gives every size its own number of tokens."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    learning_rate: LearningRateConfig
    train: PretrainConfig = PretrainConfig()
    """How to train, as in a plan of gptft pretrain. With `schedule: wsd` the runs of a size share
    their constant part."""

    @model_validator(mode="after")
    def _is_a_grid(self) -> "StudyPlan":
        if bool(self.tokens) == bool(self.budgets):
            raise UsageError("give one of tokens and budgets", where="tokens")
        if not self.corpus.evaluate:
            raise UsageError("the loss is measured on corpus.evaluate", where="corpus.evaluate")
        if (
            self.budgets
            and self.tokenizer.path
            and "vocabulary" not in self.tokenizer.model_fields_set
        ):
            what = "budgets need the number of tokens of this tokenizer"
            raise UsageError(what, where="tokenizer.vocabulary", cure="Set tokenizer.vocabulary.")
        for name in _SET_BY_CELLS:
            if name in self.train.model_fields_set:
                what = "every run of a study has its own"
                raise UsageError(what, where=f"train.{name}", cure="Leave it out.")
        shapes = [self.build_shape(size) for size in self.sizes]
        if (context := self.train.context or 2) > self.shape.positions:
            what = f"{context} is more than shape.positions {self.shape.positions}"
            raise UsageError(what, where="train.context")
        for shape in shapes:
            for amount in self.tokens or self.budgets:
                self._check_updates(self.count_updates(shape, amount), amount)
        return self

    def _check_updates(self, updates: int, amount: float) -> None:
        decays = self.train.schedule == "wsd"
        usable = find_stable_end(updates, self.train.decay) if decays else updates
        if usable <= self.train.warmup_updates:
            what = f"the warm-up takes {self.train.warmup_updates} of {updates} updates ({amount:g}"
            what += " tokens)" if self.tokens else " FLOPs)"
            cure = "Lower train.warmup_updates or train.batch_size, or train on more."
            raise UsageError(what, where="train.warmup_updates", cure=cure)

    def build_shape(self, size: SizeConfig) -> ShapeConfig:
        """The shape of a size."""
        return ShapeConfig.model_validate({**self.shape.model_dump(), **size.model_dump()})

    @property
    def context(self) -> int:
        """Tokens in a block."""
        return self.train.context or self.shape.positions

    def count_updates(self, shape: ShapeConfig, amount: float) -> int:
        """Updates that read this many tokens, or cost this many FLOPs; at least one."""
        batch, length = self.train.batch_size, self.context
        if self.tokens:
            return max(1, round(amount / (batch * (length - 1))))
        flops = count_flops(shape, self.tokenizer.vocabulary, batch, length).total
        return max(1, round(amount / flops))


def shipped_studies() -> dict[str, Path]:
    """Returns the plans of studies that come with the package, by name."""
    return {path.stem: path for path in sorted((shipped_folder() / "scale").glob("*.yaml"))}


def load_study_plan(name_or_path: str | Path, overrides: Mapping[str, Any] = {}) -> StudyPlan:
    """Loads the plan of a study.

    Args:
        name_or_path: Name of a shipped plan, or a YAML file. Paths in it are relative to its
            folder.
        overrides: Dotted key to value, as in {"train.batch_size": 8}. Their paths are relative to
            the current folder.

    Raises:
        UsageError: There is no such file, or it has an error; the message names the line.
    """
    file = find_yaml_file(name_or_path, shipped_studies(), "plan")
    plan = validate(StudyPlan, apply_overrides(StudyPlan, read_document(file), overrides))
    resolved = resolve_plan_paths(
        Plan(corpus=plan.corpus, tokenizer=plan.tokenizer), file.resolve().parent, overrides
    )
    return plan.model_copy(update={"corpus": resolved.corpus, "tokenizer": resolved.tokenizer})
