"""Fine-tuning from a recipe to a finished run."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.batching.sampler import EPOCHS, EpochSampler, choose_epochs
from finetune.checkpointing.model_card import CardContent, build_model_card
from finetune.checkpointing.model_folder import (
    StoredCalibration,
    load_model,
    load_thresholds,
    save_calibration,
    save_model,
)
from finetune.checkpointing.provenance import WEIGHTS, fingerprint_base
from finetune.data.held_out import HeldOutDraw, open_split
from finetune.data.splits import Split, encode_split, encode_training_split
from finetune.data.token_store import (
    TokenStore,
    class_indices,
    compute_lengths,
    count_shared,
    is_unlabelled,
)
from finetune.distributed.fsdp import (
    activation_checkpointing_requested,
    is_sharded,
    prepare_model,
)
from finetune.distributed.setup import (
    choose_batch_config,
    choose_precision,
    create_accelerator,
    describe_own_attention,
    deterministic_kernels,
)
from finetune.evaluation.calibration import calibrate_logits
from finetune.evaluation.evaluate import (
    EvaluationResult,
    RowLogits,
    compute_logits,
    evaluate,
    show_evaluation,
)
from finetune.evaluation.majority import score_majority
from finetune.evaluation.metrics import selection_value
from finetune.models.blocks import checkpoint_activations, freeze_layers, layer_rate_factors
from finetune.models.losses import TaskLossOptions
from finetune.models.pretrained import (
    Base,
    build_encoder,
    check_output_layer,
    load_decoder,
)
from finetune.models.speedups.compilation import compile_blocks
from finetune.models.task_model import NO_SCALE, ScoreScale, TaskModel, build_task_model
from finetune.recipe.loading import resolve_paths
from finetune.recipe.schema import HELD_OUT, Recipe, TrainConfig
from finetune.training.events import Event, Notice, Result
from finetune.training.job import (
    Evaluation,
    EvaluationSchedule,
    SplitSource,
    TrainingJob,
    loop_settings,
)
from finetune.training.log import log_events
from finetune.training.mean_state import MEAN_ROWS, measure_mean_state
from finetune.training.optimizer import build_optimizer, build_schedule
from finetune.training.progress import plan_evaluations
from finetune.training.runner import collect_result, run
from finetune.training.trackers import check_trackers, track
from task_formats import Classes, Example, MultiLabel, Range, Task, UsageError, ViewEncoder
from task_formats.labels import as_text

MANY_TRUNCATED = 0.05
"""Share of truncated training rows above which the user is warned."""


def train(
    recipe: Recipe,
    folder: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    task: Task | None = None,
    examples: Sequence[Example] | None = None,
    device: str | None = None,
) -> Result:
    """Fine-tunes a base on a task.

    Args:
        recipe: Task, data, base and training settings.
        folder: The run folder.
        resume: Continue the run in the folder from its latest checkpoint.
        overwrite: Delete the run in the folder first.
        task: Replaces the recipe's task, for tasks defined in Python.
        examples: Replace the rows of `data.train`.
        device: cpu, cuda or the like. [default: the best available]

    Returns:
        Scores of the best model.

    Raises:
        UsageError: Something is wrong with recipe, data, base or folder.
        Interrupted: A signal asked the run to stop.
    """
    return collect_result(
        events(
            recipe,
            folder,
            resume=resume,
            overwrite=overwrite,
            task=task,
            examples=examples,
            device=device,
        )
    )


def events(
    recipe: Recipe,
    folder: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    task: Task | None = None,
    examples: Sequence[Example] | None = None,
    device: str | None = None,
) -> Iterator[Event]:
    """Fine-tunes as `train` does, and yields every update and evaluation when it is done.

    Closing the generator ends the run and leaves its folder in order.
    """
    recipe = resolve_paths(recipe, Path.cwd())
    accelerator = create_accelerator(choose_precision(recipe.train.precision, device), device)
    task = recipe.task.resolve(task)
    prepare = partial(prepare_finetuning, recipe, task, examples=examples)
    options = {"resume": resume, "overwrite": overwrite}
    check_trackers(recipe.train)
    with deterministic_kernels(recipe.train.deterministic):
        events = run(prepare, Path(folder), accelerator, recipe, **options)
        events = log_events(events, Path(folder), accelerator.is_main_process)
        yield from track(events, recipe, recipe.train, Path(folder), accelerator)


@dataclass(frozen=True, kw_only=True)
class FinetuningJob(TrainingJob):
    """A fine-tuning run, ready for its first update."""

    config: Recipe
    model: TaskModel
    examples: TokenStore
    task: Task
    base: Base
    evaluation_split: Split | None
    extra_splits: dict[str, Split]
    """Scored once, at the end; they may have no labels."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Of several labels at once: label to threshold, tuned by the latest evaluation."""

    def evaluation(self) -> Evaluation | None:
        """Returns the evaluation of the current model; None without an evaluation split."""
        if self.evaluation_split is None:
            return None
        examples = self.evaluation_split.examples

        def score(passes: Iterable[RowLogits]) -> dict[str, float]:
            result = evaluate(passes, examples, self.task, self.accelerator, tune=True)
            if isinstance(labels := result.task.labels, MultiLabel):
                self.thresholds.update(zip(labels.names, labels.thresholds, strict=False))
            return result.scores

        passes = compute_logits(self.model, examples, self.batch_config, self.accelerator)
        passes = show_evaluation(passes, "evaluate", len(examples), self.accelerator)
        return Evaluation("evaluate", passes, score)

    def final_evaluations(self, folder: Path) -> Iterator[Notice | Evaluation]:
        """Yields the evaluations of the saved model: the evaluation split and the extra ones."""
        config = self.config
        model, _ = load_model(
            folder,
            self.task,
            config.train.max_tokens,
            head_bias=config.head.bias,
            trust_remote_code=config.base.trust_remote_code,
        )
        prepare_model(model, self.accelerator)
        task = load_thresholds(folder, self.task)
        splits = dict(self.extra_splits)
        if self.evaluation_split is not None:
            data = self.config.data
            # The split of a data set is shown by its name, a file as "evaluate".
            name = HELD_OUT if data.hold_out else (data.path and data.evaluate) or "evaluate"
            splits = {name: self.evaluation_split, **splits}
        for name, split in splits.items():
            if all(example.label is None for example in split.examples):
                yield Notice(f"{name} has no labels, so it is not scored")
            else:
                results: list[EvaluationResult] = []
                evaluation = self._final_evaluation(name, split.examples, model, task, results)
                labels = split.examples.labels
                known, train = labels[~is_unlabelled(labels)], self.examples.labels
                majority = score_majority(task, train.tolist(), known.tolist())
                yield evaluation._replace(majority=majority)
                if split is self.evaluation_split and isinstance(task.labels, Classes):
                    self._calibrate(results[-1].logits, folder)

    def _calibrate(self, logits: np.ndarray, folder: Path) -> None:
        """Fits the temperature of the saved model on the evaluation split."""
        assert self.evaluation_split is not None
        examples = self.evaluation_split.examples
        found = calibrate_logits(logits, examples)
        if found is not None and self.accelerator.is_main_process:
            errors = (found.error, found.corrected_error)
            stored = StoredCalibration(found.temperature, *errors, len(examples))
            save_calibration(folder, stored)

    def _final_evaluation(
        self,
        name: str,
        examples: TokenStore,
        model: TaskModel,
        task: Task,
        results: list[EvaluationResult],
    ) -> Evaluation:
        def score(passes: Iterable[RowLogits]) -> dict[str, float]:
            results.append(evaluate(passes, examples, task, self.accelerator))
            return results[-1].scores

        passes = compute_logits(model, examples, self.batch_config, self.accelerator)
        passes = show_evaluation(passes, name, len(examples), self.accelerator)
        return Evaluation(name, passes, score)

    def selection_value(self, scores: Mapping[str, float]) -> float:
        """Returns the number by which the best model is chosen; more is better."""
        return selection_value(scores, self.config.task.metrics, self.config.task.select)

    def save_model(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes decoder, tokenizer and head."""
        model = self.model
        if weights is not None:
            base = load_decoder(self.config.base, self.config.train.seed)
            bias, scale = self.config.head.bias, self.model.score_scale
            model = build_task_model(base, self.task, head_bias=bias, score_scale=scale)
            model.load_state_dict(weights)
            mean = self.model.head.mean_state
            model.head.mean_state = None if mean is None else mean.cpu()
        task = self.task
        if self.thresholds and isinstance(task.labels, MultiLabel):
            task = replace(task, labels=task.labels.with_thresholds(self.thresholds))
        save_model(folder, model, self.base, task, self.config.train.max_tokens)

    def model_card(self, name: str, result: Mapping[str, Any]) -> str:
        """Returns the README.md of the saved model, from the content of result.json."""
        return str(build_model_card(CardContent(name, self.config, self.task, result)))


def prepare_finetuning(
    recipe: Recipe,
    task: Task,
    accelerator: Accelerator,
    examples: Sequence[Example] | None = None,
) -> FinetuningJob:
    """Loads the base, encodes the data and builds model and optimizer.

    Raises:
        UsageError: Recipe, data or base do not fit together.
    """
    config, data = recipe.train, recipe.data
    # A base may take minutes to download: missing data is found first.
    for split in filter(None, (data.train, data.evaluation_split, *data.extra.values())):
        open_split(data, task, split)
    base = load_decoder(recipe.base, config.seed)
    if config.lm_coefficient > 0:
        cure = "Pass --lm-coefficient 0 to train without it."
        check_output_layer(base.output, "train.lm_coefficient", cure)
    encoder = build_encoder(recipe, task, base)
    if config.compile:
        compile_blocks(base.decoder)
    if config.activation_checkpointing or activation_checkpointing_requested():
        checkpoint_activations(base.decoder)
    splits = _encode_splits(recipe, task, base, encoder, accelerator, examples)
    train_split = splits.train
    sampler = _build_sampler(config, task, train_split.examples)
    recipe = recipe.with_train(epochs=sampler.epochs)
    task_loss = choose_task_loss(config, task, train_split.examples)
    model = _build_model(recipe, task, base, train_split.examples)
    prepare_model(model, accelerator)
    batch_config = choose_batch_config(
        base.decoder,
        accelerator,
        base.task_tokens.pad_id,
        layout=config.layout,
        max_tokens=config.tokens_per_forward,
        training=True,
    )
    if recipe.head.center_states and model.head.can_fold_mean:
        first = [train_split.examples[n] for n in sampler.order(0)[:MEAN_ROWS].tolist()]
        model.head.mean_state = measure_mean_state(model, first, batch_config, accelerator)
    fingerprints = fingerprint_base(recipe.base.path, base.decoder)
    if recipe.base.from_scratch:
        fingerprints.pop(WEIGHTS, None)
    return FinetuningJob(
        config=recipe,
        fixed_sections=("task", "base", "head", "train"),
        model=model,
        # After prepare_model, which may replace weights by shards.
        optimizer=build_optimizer(
            model.parameters(),
            config,
            layer_rate_factors(model.backbone.decoder, config.layer_decay),
        ),
        accelerator=accelerator,
        batch_config=batch_config,
        examples=train_split.examples,
        sampler=sampler,
        settings=loop_settings(
            config,
            build_schedule(config.learning_rate, sampler.updates, config.warmup, config.schedule),
            config.lm_coefficient,
        )._replace(task_loss=task_loss._replace(score_deviation=model.score_scale.deviation)),
        schedule=EvaluationSchedule.of(
            config, plan_evaluations(sampler, config.evaluations), config.patience
        ),
        sources={
            name: SplitSource(split.fingerprint, len(split.examples))
            for name, split in splits.by_name().items()
        },
        base_fingerprints=fingerprints,
        notices=(
            *_describe_epochs(config, sampler),
            *_describe_data(task, splits, config.fraction),
            *_describe_model(model, accelerator),
        ),
        truncated_tokens=int(train_split.examples.arrays.truncated_tokens.sum()),
        truncation_warning=_describe_lost_tokens(task, train_split.examples, config.max_tokens),
        skipped_rows=train_split.report.num_skipped + train_split.report.unlabelled,
        task=task,
        base=base,
        evaluation_split=splits.evaluation,
        extra_splits=splits.extra,
    )


class _Splits(NamedTuple):
    """The encoded rows of a run."""

    train: Split
    evaluation: Split | None
    extra: dict[str, Split]

    def by_name(self) -> dict[str, Split]:
        evaluation = {"evaluate": self.evaluation} if self.evaluation else {}
        return {**self.extra, "train": self.train, **evaluation}


def _encode_splits(
    recipe: Recipe,
    task: Task,
    base: Base,
    encoder: ViewEncoder,
    accelerator: Accelerator,
    examples: Sequence[Example] | None,
) -> _Splits:
    """Encodes all rows, or reads them from the cache."""
    data, tokenizer = recipe.data, base.task_tokens.fingerprint
    draw = HeldOutDraw(data, task)
    encode = partial(encode_split, recipe, task, encoder, tokenizer_hash=tokenizer, draw=draw)
    # The main process fills the cache; the others then read it.
    with accelerator.main_process_first():
        return _Splits(
            encode_training_split(
                recipe, task, encoder, examples=examples, tokenizer_hash=tokenizer, draw=draw
            ),
            encode(data.evaluation_split) if data.evaluation_split else None,
            {name: encode(split, labelled=False) for name, split in data.extra.items()},
        )


def _build_model(recipe: Recipe, task: Task, base: Base, examples: TokenStore) -> TaskModel:
    """The decoder with a new head, and with what is not trained frozen."""
    config = recipe.train
    torch.manual_seed(config.seed)
    scale = choose_score_scale(recipe, task, examples)
    model = build_task_model(base, task, config.head_dropout, recipe.head.bias, scale)
    freeze_layers(base.decoder, config.freeze_layers)
    if config.lm_coefficient == 0:
        _freeze_output_layer(model)
    return model


def _build_sampler(config: TrainConfig, task: Task, examples: TokenStore) -> EpochSampler:
    """The order of the training rows; UsageError if there are too few for an update."""
    rows, drop = len(examples), config.incomplete_batch == "drop"
    epochs = config.epochs or choose_epochs(rows, config.batch_size)
    has_classes = isinstance(task.labels, Classes) and not task.format.is_multiple_choice
    classes = class_indices(examples.labels) if config.stratify and has_classes else None
    sampler = EpochSampler(rows, config.batch_size, epochs, config.seed, drop, classes)
    if sampler.updates < 1:
        raise UsageError(
            f"{rows} rows are too few for an update of {config.batch_size}",
            where="train.batch_size",
            cure="Lower --batch-size, or set train.incomplete_batch to keep.",
        )
    return sampler


def choose_score_scale(recipe: Recipe, task: Task, examples: TokenStore) -> ScoreScale:
    """Returns the mean and standard deviation of the training scores; (0, 1) without scores.

    A head without a bias cannot learn a mean: then it is 0, and the deviation is measured from 0.
    """
    if not isinstance(task.labels, Range) or not recipe.head.standardize_scores:
        return NO_SCALE
    scores = examples.labels[~is_unlabelled(examples.labels)].astype(np.float64)
    mean = float(scores.mean()) if recipe.head.bias else 0.0
    deviation = math.sqrt(np.square(scores - mean).mean())
    return ScoreScale(mean, deviation or 1.0)


def choose_task_loss(config: TrainConfig, task: Task, examples: TokenStore) -> TaskLossOptions:
    """Returns label smoothing and class weights for the training examples.

    "balanced" weights are scikit-learn's: N / (C · examples of the class), where C counts the
    classes that occur; others have weight 1. For several labels at once they are the number of
    examples without the label / with the label.
    """
    is_distribution = task.labels.kind == "classes"
    if config.class_weights is None:
        return TaskLossOptions(None, config.label_smoothing, is_distribution)
    names, weights = list(task.labels.names), torch.ones(task.labels.num_outputs)
    if config.class_weights == "balanced" and isinstance(task.labels, MultiLabel):
        present, absent = ((examples.labels == value).sum(0) for value in (1, 0))
        weights = torch.tensor(np.where(present > 0, absent / np.maximum(present, 1), 1.0)).float()
        # A label that all examples have would not be learned at all.
        weights[weights == 0] = 1.0
    elif config.class_weights == "balanced":
        classes, counts = np.unique(class_indices(examples.labels), return_counts=True)
        balanced = counts.sum() / (len(classes) * counts)
        weights[torch.from_numpy(classes.astype(int))] = torch.from_numpy(balanced).float()
    else:
        raw = task.labels.raw if not isinstance(task.labels, Range) else {}
        for label, weight in config.class_weights.items():
            name = raw.get(as_text(label), as_text(label))
            weights[names.index(name)] = weight
    return TaskLossOptions(weights, config.label_smoothing, is_distribution)


def _describe_epochs(config: TrainConfig, sampler: EpochSampler) -> Iterator[str]:
    """A note where few rows are trained for more epochs than usual."""
    if config.epochs is None and sampler.epochs > EPOCHS:
        rows = f"{sampler.rows:,} training rows are few"
        yield f"{sampler.epochs:g} epochs, because {rows} (--epochs changes it)"


def _describe_data(task: Task, splits: _Splits, fraction: float) -> Iterator[str]:
    """Notes about the splits, with warnings if little can be learned or concluded from them.

    Training rows of one class are an error, unless they are a drawn fraction of others.
    """
    train, evaluation = splits.train, splits.evaluation
    for split in splits.by_name().values():
        yield from split.describe()
    for split in filter(None, (train, evaluation)):
        labels = split.examples.labels
        if isinstance(task.labels, Classes):
            found = np.unique(class_indices(labels[~is_unlabelled(labels)]))
            if len(found) == 1:
                what = f"every row of {split.origin} has the label {task.labels.name(found[0])!r}"
                if split is train and fraction == 1 and not task.format.is_multiple_choice:
                    raise UsageError(what, cure="Give training rows of other labels too.")
                yield f"warning: {what}"
    if evaluation and (shared := count_shared(evaluation.examples, train.examples)):
        rows = f"{shared} of {len(evaluation.examples)} evaluation rows"
        yield f"warning: {rows} also occur in the training rows, so scores are too high"


def _describe_model(model: TaskModel, accelerator: Accelerator) -> Iterator[str]:
    """Notes about how the model is computed."""
    if is_sharded(model):
        count = accelerator.num_processes
        yield f"FSDP2: model and optimizer state are sharded over {count} processes"
    if notice := describe_own_attention(model.backbone.decoder):
        yield notice


def _describe_lost_tokens(task: Task, examples: TokenStore, max_tokens: int) -> str:
    """What is lost if many training rows are longer than the model reads; else empty."""
    lost = examples.arrays.truncated_tokens
    if (share := float((lost > 0).mean())) <= MANY_TRUNCATED:
        return ""
    read = compute_lengths(examples).longest.sum()
    part = lost.sum() / (lost.sum() + read)
    cure = "Raise --max-tokens, or read them in windows: --set task.windows.stride=128"
    if task.windows is not None:
        cure = f"They need more than {task.windows.most} windows: raise task.windows.most"
    return (
        f"{share:.0%} of the training rows are longer than {max_tokens} tokens, and {part:.0%} of "
        f"all tokens are not read. {cure}."
    )


def _freeze_output_layer(model: TaskModel) -> None:
    """Freezes an output layer that is not tied to the embeddings: without an LM loss it is unused.

    Frozen weights need no memory for gradients and moments.
    """
    embedding = model.backbone.decoder.get_input_embeddings().weight
    for weight in model.backbone.output_layer():
        # A weight that is no leaf is computed from trained rows (LoRA), which the embedding uses.
        if weight is not None and weight is not embedding and weight.is_leaf:
            weight.requires_grad_(False)
