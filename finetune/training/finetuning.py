"""One fine-tuning job on this process: base, model, encoded rows, and the batches of any update."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from finetune.batching.collate import Batch, UpdateTotals, collate, count_totals, to_device
from finetune.batching.sampler import EpochSampler, batch_by_tokens, shard_by_length
from finetune.checkpointing.model_folder import load_model, save_model
from finetune.checkpointing.provenance import WEIGHTS, fingerprint_base
from finetune.data.sources import open_rows
from finetune.data.splits import Split, encode_split, encode_training_split
from finetune.data.token_store import ExampleLengths, TokenStore, compute_lengths
from finetune.distributed.fsdp import is_sharded, prepare_model
from finetune.distributed.setup import choose_layout, choose_max_tokens_per_forward
from finetune.evaluation.evaluate import BatchConfig, RowLogits, compute_logits, evaluate
from finetune.models.losses import objective
from finetune.models.pretrained import Base, build_encoder, load_decoder
from finetune.models.speedups.compilation import compile_blocks
from finetune.models.task_model import TaskModel, build_task_model
from finetune.recipe.loading import dump_recipe, parse_recipe
from finetune.recipe.schema import Recipe
from finetune.training.events import Notice, Started
from finetune.training.job import EvaluationSchedule, EvaluationScores, SplitSource, Watch
from finetune.training.loop import LoopSettings, MicroBatches
from finetune.training.optimizer import build_optimizer
from finetune.training.progress import plan_evaluations, selection_value
from finetune.training.schedule import plan_rates
from task_formats import Example, Task, UsageError


@dataclass(frozen=True)
class FinetuningJob:
    """All parts of a fine-tuning run, ready for its first update."""

    recipe: Recipe
    task: Task
    base: Base
    model: TaskModel
    parallel_model: nn.Module
    """The model as its processes share it; the model itself on one process."""
    optimizer: AdamW
    accelerator: Accelerator
    train: Split
    evaluated: Split | None
    extra: dict[str, Split]
    """What is scored at the end beside the evaluation split, by name; perhaps without labels."""
    batch_config: BatchConfig

    @cached_property
    def lengths(self) -> ExampleLengths:
        """Of the training rows."""
        return compute_lengths(self.train.examples)

    @cached_property
    def sampler(self) -> EpochSampler:
        """Which rows every update reads."""
        part = self.recipe.train
        drop = part.incomplete_batch == "drop"
        return EpochSampler(len(self.train.examples), part.batch_size, part.epochs, part.seed, drop)

    @property
    def settings(self) -> LoopSettings:
        """What the loop needs to know."""
        part = self.recipe.train
        factor = plan_rates(self.sampler.updates, part.warmup)
        return LoopSettings(
            lambda update: part.learning_rate * factor(update),
            part.epsilon,
            part.lm_coefficient,
            part.max_grad_norm,
            part.seed,
            self.batch_config.max_tokens_per_forward,
        )

    @cached_property
    def schedule(self) -> EvaluationSchedule:
        """When to evaluate, to save and to give up."""
        part = self.recipe.train
        due = plan_evaluations(self.sampler, part.evaluations)
        return EvaluationSchedule(
            due, part.patience, part.checkpoint_minutes, part.checkpoint_updates, part.most_refused
        )

    def make_microbatches(self, update: int, budget: int | None) -> MicroBatches:
        """An update's rows on this process, sorted by length and cut; the size of all of it."""
        indices = self.sampler.indices(update)
        own = shard_by_length(indices, self.lengths, self.accelerator.num_processes)
        rank, most = (
            self.accelerator.process_index,
            budget or self.batch_config.max_tokens_per_forward,
        )
        # In shards every pass is one of all processes: who has fewer makes idle ones.
        cuts = [
            batch_by_tokens(rows, self.lengths, self.batch_config.layout, most)
            for rows in (own if is_sharded(self.model) else own[rank : rank + 1])
        ]
        groups = cuts[rank if len(cuts) > 1 else 0]
        totals = count_totals([self.train.examples[n] for n in indices])
        batches = [self._collate(rows, totals) for rows in groups]
        idle = partial(self._idle, indices[:1])
        batches += [idle() for _ in range(max(map(len, cuts)) - len(groups))]
        return MicroBatches(batches, len(indices), int(self.lengths.tokens[indices].sum()), idle)

    def started(self, done: int) -> Started:
        """What there is to say before the first update."""
        trained = [part for part in self.model.parameters() if part.requires_grad]
        report = self.train.report
        return Started(
            updates=self.sampler.updates,
            done=done,
            examples=len(self.train.examples),
            evaluated=len(self.evaluated.examples) if self.evaluated else 0,
            parameters=sum(part.numel() for part in trained),
            device=str(self.accelerator.device),
            precision="bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            layout=self.batch_config.layout,
            processes=self.accelerator.num_processes,
            cut=sum(example.truncated_tokens for example in self.train.examples),
            skipped=len(report.skipped) + report.unlabelled,
        )

    def notices(self) -> Iterator[str]:
        """What a person should know of the data and the base."""
        for split in self._splits().values():
            if split.report.unlabelled:
                yield f"{split.origin}: {split.report.unlabelled} rows without a label left out"
            for row in split.report.skipped:
                yield f"left out {row.id} ({row.location}): {row.reason}"
        if is_sharded(self.model):
            count = self.accelerator.num_processes
            yield f"FSDP2: weights, gradients and moments are cut into {count} shards"
        if self.batch_config.layout == "separate" and self.recipe.train.layout == "auto":
            kind = self.base.decoder.config.model_type
            yield f"{kind} has an attention of its own: views stand in rows of their own, padded"

    def find_nonfinite_examples(self, update: int) -> list[str]:
        """Ids of the update's rows whose own loss is not finite; all of them where none is."""
        ids, found = [], []
        for n in self.sampler.indices(update):
            example = self.train.examples[n]
            batch = collate([example], "separate", self.batch_config.pad_id)
            batch = to_device(batch, self.accelerator.device)
            with torch.no_grad(), self.accelerator.autocast():
                lm_coefficient = self.recipe.train.lm_coefficient
                outputs = self.model(batch, lm=lm_coefficient > 0)
            ids.append(example.id)
            if not objective(outputs, batch, lm_coefficient).total.isfinite():
                found.append(example.id)
        return found or ids

    def config_yaml(self) -> str:
        """The recipe with every value written out."""
        return dump_recipe(self.recipe)

    def decisions(self, told: str | None = None) -> dict[str, Any]:
        """Dotted keys of all that decides what a run computes."""
        recipe = self.recipe if told is None else parse_recipe(told)
        return recipe.fixed_on_resume(("task", "base", "train"))

    def sources(self) -> dict[str, SplitSource]:
        """What was read, by split."""
        return {
            name: SplitSource(split.fingerprint, len(split.examples))
            for name, split in self._splits().items()
        }

    def _splits(self) -> dict[str, Split]:
        own = {"train": self.train, "evaluate": self.evaluated}
        return {**self.extra, **{name: split for name, split in own.items() if split}}

    def origins(self) -> dict[str, str]:
        """Fingerprints of the base's parts."""
        part = self.recipe.base
        found = fingerprint_base(part.path, self.base.decoder)
        unread = {WEIGHTS} if part.from_scratch else set()
        return {name: value for name, value in found.items() if name not in unread}

    def rounds(self) -> Iterator[RowLogits] | None:
        """The evaluation split, a forward pass at a time."""
        if self.evaluated is None:
            return None
        return compute_logits(
            self.model, self.evaluated.examples, self.batch_config, self.accelerator
        )

    def judge(self, rounds: Iterable[RowLogits]) -> EvaluationScores:
        """The task's metrics on the evaluation split."""
        examples = cast(Split, self.evaluated).examples
        scores = self._score(rounds, examples)
        return EvaluationScores(scores, selection_value(self.recipe.task, scores))

    def _score(self, rounds: Iterable[RowLogits], examples: TokenStore) -> dict[str, float]:
        return evaluate(rounds, examples, self.task, self.accelerator).scores

    def save_model(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Decoder, tokenizer and head; of a model in shards a copy is made for them."""
        model = self.model if weights is None else self._copy(weights)
        save_model(folder, model, self.base)

    def _copy(self, weights: dict[str, Tensor]) -> TaskModel:
        base = load_decoder(self.recipe.base, self.recipe.train.seed)
        model = build_task_model(base, self.task)
        model.load_state_dict(weights)
        return model

    def final_scores(
        self, folder: Path, watch: Watch
    ) -> Iterator[Notice | tuple[str, dict[str, float]]]:
        """What `gptft predict` will use, on the evaluation split and the extra ones."""
        trust = self.recipe.base.trust_remote_code
        model, _ = load_model(folder, self.task, trust_remote_code=trust)
        prepare_model(model, self.accelerator)
        for name, split in self._labelled_splits():
            if all(example.label is None for example in split.examples):
                yield Notice(f"{name} has no labels: nothing to score")
                continue
            rounds = compute_logits(model, split.examples, self.batch_config, self.accelerator)
            yield name, self._score(watch(rounds), split.examples)

    def _labelled_splits(self) -> Iterator[tuple[str, Split]]:
        if self.evaluated is not None:
            data = self.recipe.data
            # A split of a data set has a name; a file has a path, which says little in a table.
            yield (data.path and data.evaluate) or "evaluate", self.evaluated
        yield from self.extra.items()

    def _idle(self, indices: np.ndarray) -> Batch:
        """A row that weighs nothing: every process must take part in the exchange of gradients."""
        batch = self._collate(indices)
        return batch._replace(
            token_weight=batch.token_weight * 0, example_weight=batch.example_weight * 0
        )

    def _collate(self, indices: np.ndarray, totals: UpdateTotals | None = None) -> Batch:
        examples = [self.train.examples[n] for n in indices]
        return collate(examples, self.batch_config.layout, self.batch_config.pad_id, totals)


def prepare_finetuning(
    recipe: Recipe,
    task: Task,
    accelerator: Accelerator,
    examples: Sequence[Example] | None = None,
) -> FinetuningJob:
    """Loads, reads, checks and builds everything. UsageError for whatever does not fit."""
    task = recipe.task.resolve(task)
    # A base may take minutes to fetch: that there are rows at all is looked up first.
    held_out, more = recipe.data.evaluate, recipe.data.extra
    for split in filter(None, (recipe.data.train, held_out, *more.values())):
        open_rows(recipe.data, split)
    base = load_decoder(recipe.base, recipe.train.seed)
    encoder = build_encoder(recipe, task, base)
    if recipe.train.compile:
        compile_blocks(base.decoder)
    # One process reads and writes the cache; the others then find it there.
    with accelerator.main_process_first():
        tokenizer = base.task_tokens.fingerprint
        train = encode_training_split(
            recipe, task, encoder, examples=examples, tokenizer_hash=tokenizer
        )
        encode = partial(encode_split, recipe, task, encoder, tokenizer_hash=tokenizer)
        evaluated = encode(held_out) if held_out else None
        extra = {name: encode(split, labelled=False) for name, split in more.items()}
    torch.manual_seed(recipe.train.seed)
    model = build_task_model(base, task, recipe.train.head_dropout)
    _freeze_unread(model, recipe.train.lm_coefficient)
    prepare_model(model, accelerator)
    # Shards take the place of weights, so the optimizer comes after them.
    optimizer = build_optimizer(model.parameters(), recipe.train)
    layout = choose_layout(recipe.train, base.decoder, task.format.is_multiple_choice)
    batch_config = BatchConfig(
        layout,
        base.task_tokens.pad_id,
        choose_max_tokens_per_forward(recipe.train, base.decoder, accelerator.device),
    )
    wrapped = model if is_sharded(model) else cast(nn.Module, accelerator.prepare_model(model))
    splits = (train, evaluated, extra)
    job = FinetuningJob(
        recipe, task, base, model, wrapped, optimizer, accelerator, *splits, batch_config
    )
    if job.sampler.updates < 1:
        raise UsageError(
            f"{len(train.examples)} rows make no update of {recipe.train.batch_size}",
            where="train.batch_size",
            cure="Lower --batch-size, or set train.incomplete_batch to keep.",
        )
    return job


def _freeze_unread(model: TaskModel, lm_coefficient: float) -> None:
    """Without an LM loss an output layer of its own gets no gradient: it must not wait for one."""
    embedding = model.backbone.decoder.get_input_embeddings().weight
    for part in model.backbone.output_layer():
        # What is no leaf is computed from trained rows (adapters), which the embedding reads too.
        if part is not None and part is not embedding and part.is_leaf and lm_coefficient == 0:
            part.requires_grad_(False)
