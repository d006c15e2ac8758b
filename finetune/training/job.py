"""What fine-tuning and pre-training have in common: a prepared model, its data and its schedule."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.batching.collate import (
    Batch,
    UpdateTotals,
    collate,
    count_totals,
    to_device,
    weigh_examples,
)
from finetune.batching.sampler import BatchConfig, EpochSampler, batch_by_tokens, shard_by_length
from finetune.checkpointing.checkpoint import KEEP
from finetune.data.token_store import ExampleLengths, compute_lengths
from finetune.distributed.fsdp import is_sharded
from finetune.distributed.setup import choose_precision
from finetune.evaluation.evaluate import RowLogits
from finetune.models.losses import objective
from finetune.recipe.schema import CommonTrainConfig, StrictModel
from finetune.recipe.yaml_documents import parse_document
from finetune.training.events import Notice, Started
from finetune.training.group_norms import GradientGroups
from finetune.training.loop import LoopSettings, MicroBatches
from finetune.training.noise_scale import measure_groups
from task_formats import Encoded


class EvaluationSchedule(NamedTuple):
    """What happens between two updates, and when."""

    evaluate_after: Callable[[int], bool]
    """Whether to evaluate after update 1, 2, ..."""
    patience: int | None
    """Evaluations without improvement after which to stop."""
    checkpoint_minutes: float | None
    checkpoint_updates: int | None
    max_nonfinite: int
    """Updates in a row that are not finite after which to stop."""
    keep_checkpoints: int = 1
    """Checkpoints that stay when the run is finished."""
    checkpoint_at: int | None = None
    """An update after which a checkpoint is saved in any case."""

    @property
    def saves_checkpoints(self) -> bool:
        """False if only a signal saves a checkpoint."""
        return bool(self.checkpoint_minutes or self.checkpoint_updates)

    @classmethod
    def of(
        cls,
        config: CommonTrainConfig,
        evaluate_after: Callable[[int], bool],
        patience: int | None = None,
    ) -> "EvaluationSchedule":
        """Takes everything else from the configuration."""
        return cls(
            evaluate_after,
            patience,
            config.checkpoint_minutes,
            config.checkpoint_updates,
            config.most_refused,
            config.keep_checkpoints,
        )


def loop_settings(
    config: CommonTrainConfig, learning_rate: Callable[[int], float], lm_coefficient: float
) -> LoopSettings:
    """Takes everything but the learning rate and λ from the configuration."""
    norm = config.max_grad_norm
    return LoopSettings(
        learning_rate,
        config.epsilon,
        lm_coefficient,
        norm,
        config.seed,
        noise_scale=config.noise_scale,
        optimizer=config.optimizer,
    )


class SplitSource(NamedTuple):
    """What was read for a split: a fingerprint of its content, and its number of examples."""

    fingerprint: str
    rows: int


class Evaluation(NamedTuple):
    """A split to be scored."""

    name: str
    passes: Iterator[RowLogits]
    """Forward passes, computed as they are consumed."""
    score: Callable[[Iterable[RowLogits]], dict[str, float]]
    """From all passes to metric name and value."""
    majority: dict[str, float] | None = None
    """Scores of the most frequent training label on this split, to compare with."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob(ABC):
    """A training run on this process, ready for its first update."""

    config: StrictModel
    """The recipe or plan."""
    fixed_sections: tuple[str, ...]
    """Sections of it whose settings may not change on resume, unless they are `resume_safe`."""
    model: nn.Module
    optimizer: Optimizer
    accelerator: Accelerator
    batch_config: BatchConfig
    examples: Sequence[Encoded]
    """The N training examples."""
    sampler: EpochSampler
    settings: LoopSettings
    schedule: EvaluationSchedule
    sources: dict[str, SplitSource]
    """What was read, by split: "train", perhaps "evaluate", and further ones."""
    base_fingerprints: dict[str, str]
    """A fingerprint of each part of the base; empty without a base."""
    notices: tuple[str, ...] = ()
    """Messages for the user about data and base."""
    truncated_tokens: int = 0
    truncation_warning: str = ""
    skipped_rows: int = 0

    @abstractmethod
    def evaluation(self) -> Evaluation | None:
        """Returns the evaluation of the current model; None without an evaluation split."""

    @abstractmethod
    def final_evaluations(self, folder: Path) -> Iterator[Notice | Evaluation]:
        """Yields the evaluations of the model that was saved in `folder`, split by split."""

    @abstractmethod
    def selection_value(self, scores: Mapping[str, float]) -> float:
        """Returns the number by which the best model is chosen; more is better."""

    @abstractmethod
    def save_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Writes the current model; `weights` are those of a sharded one, gathered."""

    @abstractmethod
    def model_card(self, name: str, result: Mapping[str, Any]) -> str:
        """Returns the README.md of the saved model, from the content of result.json."""

    def fixed_settings(self, config_yaml: str | None = None) -> dict[str, Any]:
        """Returns dotted key to value of all settings that may not change on resume.

        Args:
            config_yaml: Another recipe or plan to take the values from, instead of this job's.
        """
        config = self.config
        if config_yaml is not None:
            config = type(config).model_validate(parse_document(config_yaml, "").data)
        return self._effective(config).fixed_on_resume(self.fixed_sections)

    @cached_property
    def effective_yaml(self) -> str:
        """The recipe or plan with what `auto` means here, as YAML."""
        return self._effective(self.config).to_yaml()

    def _effective(self, config: StrictModel) -> StrictModel:
        """Replaces settings by what they mean on this device: a CPU is always deterministic."""
        train, device = cast(Any, config).train, self.accelerator.device.type
        values = {
            "precision": choose_precision(train.precision, device),
            "deterministic": train.deterministic and device != "cpu",
        }
        return config.model_copy(update={"train": train.model_copy(update=values)})

    @cached_property
    def lengths(self) -> ExampleLengths:
        """Token lengths of the training examples."""
        return compute_lengths(self.examples)

    def make_microbatches(self, update: int, max_tokens: int | None) -> MicroBatches:
        """Makes the forward passes of update 1, 2, ... on this process, sorted by length.

        `max_tokens` limits the tokens per pass instead of the batch configuration. Each process has
        a part of the update of its own. A single process, and a sharded model, whose processes make
        their passes together, cut it in two for the noise scale. Parts are alike in length. That
        keeps passes even, and leaves out the noise that length alone explains. For the noise scale
        the parts of stratified updates are stratified too.
        """
        rows = self.sampler.indices(update)
        if self._splits_examples:
            count = self.accelerator.num_processes
        else:
            count = 2 if self.settings.noise_scale else 1
        classes = self.sampler.classes if self.settings.noise_scale else None
        return self.collate_groups(shard_by_length(rows, self.lengths, count, classes), max_tokens)

    @property
    def _splits_examples(self) -> bool:
        """Whether each process makes passes of its own."""
        return self.accelerator.num_processes > 1 and not is_sharded(self.model)

    def collate_groups(
        self, groups: Sequence[np.ndarray], max_tokens: int | None = None
    ) -> MicroBatches:
        """Makes this process's forward passes of an update whose examples are in groups.

        Args:
            groups: (n,) indices of the examples of each group. Where each process makes passes of
                its own there is one group per process, else no pass crosses groups.
            max_tokens: Limits the tokens per pass instead of the batch configuration.
        """
        rows = np.concatenate(groups)
        weights = self.settings.task_loss.class_weights
        class_weights = None if weights is None else weights.tolist()
        totals = count_totals([self.examples[n] for n in rows.tolist()], class_weights)
        limit = max_tokens or self.batch_config.max_tokens_per_forward
        own = [groups[self.accelerator.process_index]] if self._splits_examples else groups
        batches: list[Batch] = []
        ends = []
        for group in own:
            batches += self._make_passes(group, totals, limit)
            ends.append(len(batches))
        gradient_groups = None
        if self.settings.noise_scale:
            gradient_groups = self._measure_groups(groups, ends, class_weights)
        tokens = int(self.lengths.tokens[rows].sum())
        return MicroBatches(batches, len(rows), tokens, gradient_groups)

    def _make_passes(self, rows: np.ndarray, totals: UpdateTotals, limit: int) -> list[Batch]:
        layout = self.batch_config.layout
        if not is_sharded(self.model):
            passes = batch_by_tokens(rows, self.lengths, layout, limit)
            return [self._collate(indices, totals) for indices in passes]
        shards = shard_by_length(rows, self.lengths, self.accelerator.num_processes)
        all_passes = [batch_by_tokens(shard, self.lengths, layout, limit) for shard in shards]
        own = all_passes[self.accelerator.process_index]
        batches = [self._collate(indices, totals) for indices in own]
        # All processes of a sharded model take part in every pass: some make empty ones.
        missing = max(map(len, all_passes)) - len(batches)
        return batches + [self._collate_empty(rows[-1:]) for _ in range(missing)]

    def _measure_groups(
        self,
        groups: Sequence[np.ndarray],
        ends: Sequence[int],
        class_weights: Sequence[float] | None,
    ) -> GradientGroups | None:
        """The weights of the groups; None if there are fewer than two."""
        weights = [
            weigh_examples([self.examples[n] for n in group.tolist()], class_weights)
            for group in groups
        ]
        sizes = measure_groups(weights)
        if sizes is None:
            return None
        sums = np.array([weight.sum() for weight in weights])
        shares = (sums / sums.sum()).tolist()
        own = [shares[self.accelerator.process_index]] if self._splits_examples else shares
        return GradientGroups(tuple(ends), tuple(own), sizes)

    def _collate(self, rows: np.ndarray, totals: UpdateTotals | None = None) -> Batch:
        examples = [self.examples[n] for n in rows.tolist()]
        return collate(examples, self.batch_config.layout, self.batch_config.pad_id, totals)

    def _collate_empty(self, rows: np.ndarray) -> Batch:
        """A batch that adds nothing to losses and gradients."""
        batch = self._collate(rows)
        return batch._replace(
            token_weight=batch.token_weight * 0, example_weight=batch.example_weight * 0
        )

    def find_nonfinite_examples(self, update: int) -> list[str]:
        """Returns the ids of an update's examples whose loss is not finite.

        Returns all ids if every loss is finite: then only the gradient is not.
        """
        ids, nonfinite = [], []
        lm_coefficient = self.settings.lm_coefficient
        for n in self.sampler.indices(update).tolist():
            example = self.examples[n]
            batch = collate([example], "separate", self.batch_config.pad_id)
            batch = to_device(batch, self.accelerator.device)
            with torch.no_grad(), self.accelerator.autocast():
                outputs = self.model(batch, lm=lm_coefficient > 0)
            ids.append(example.id)
            losses = objective(outputs, batch, lm_coefficient, self.settings.task_loss)
            if not losses.total.isfinite():
                nonfinite.append(example.id)
        return nonfinite or ids

    def required_disk_bytes(self) -> int:
        """The most bytes of models and checkpoints that are on the disk at once, about.

        A model or checkpoint is complete before the one that it replaces is deleted.
        """
        weights = list(self.model.parameters())
        model = sum(weight.numel() * weight.element_size() for weight in weights)
        trained = sum(w.numel() * w.element_size() for w in weights if w.requires_grad)
        # In copies of the trained weights.
        moments = {"adafactor": 0.0, "adamw_8bit": 0.5}.get(self.settings.optimizer, 2.0)
        checkpoints = max(self.schedule.keep_checkpoints, KEEP) + 1
        if not self.schedule.saves_checkpoints:
            checkpoints = 1  # After a signal.
        return 2 * model + int(checkpoints * (1 + moments) * trained)

    def started(self, done: int) -> Started:
        """Describes the run before its first update; `done` updates came before a resume."""
        device = self.accelerator.device
        return Started(
            updates=self.sampler.updates,
            done=done,
            examples=len(self.examples),
            evaluation_examples=self.sources["evaluate"].rows if "evaluate" in self.sources else 0,
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            device="cpu" if device.type == "cpu" else str(device),
            precision="bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            layout=self.batch_config.layout,
            processes=self.accelerator.num_processes,
            truncated_tokens=self.truncated_tokens,
            truncation_warning=self.truncation_warning,
            skipped_rows=self.skipped_rows,
            updates_per_epoch=self.sampler.updates_per_epoch,
        )
