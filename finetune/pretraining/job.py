"""One pre-training job on this process: decoder, tokenizer, text, and any update's batches."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.batching.collate import Batch, UpdateTotals, collate, to_device
from finetune.batching.sampler import EpochSampler, batch_by_tokens, shard_by_length
from finetune.checkpointing.model_folder import save_decoder
from finetune.checkpointing.provenance import fingerprint_base
from finetune.data.token_store import ExampleLengths
from finetune.evaluation.evaluate import BatchConfig, RowLogits, compute_logits, gather_logits
from finetune.models.language_model import LanguageModel
from finetune.models.pretrained import load_language_model
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.perplexity import TextScorer, measure_perplexity
from finetune.pretraining.plan import Plan, dump_plan, parse_plan
from finetune.recipe.schema import BaseConfig
from finetune.training.events import Notice, Started
from finetune.training.job import EvaluationSchedule, EvaluationScores, SplitSource, Watch
from finetune.training.loop import LoopSettings, MicroBatches
from finetune.training.schedule import plan_rates


@dataclass(frozen=True)
class TextSplit:
    """The blocks of one split, and what bits per byte are counted over."""

    blocks: TokenBlocks
    text_bytes: int
    fingerprint: str


@dataclass(frozen=True)
class PretrainingJob:
    """All parts of a pre-training run, ready for its first update (a `work.Work`)."""

    plan: Plan
    decoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model: LanguageModel
    parallel_model: nn.Module
    optimizer: AdamW
    accelerator: Accelerator
    batch_config: BatchConfig
    train: TextSplit
    evaluated: TextSplit | None

    @cached_property
    def lengths(self) -> ExampleLengths:
        """Of the training blocks."""
        return self.train.blocks.compute_lengths()

    @cached_property
    def sampler(self) -> EpochSampler:
        """Which blocks every update reads; the rest of an epoch that fills no batch waits."""
        part, rows = self.plan.train, len(self.train.blocks)
        batch_size = min(part.batch_size, rows)
        per_epoch = rows // batch_size
        epochs = part.updates / per_epoch if part.updates else part.epochs
        return EpochSampler(rows, batch_size, epochs, part.seed, drop_incomplete=True)

    @property
    def settings(self) -> LoopSettings:
        """Linear warm-up to the peak rate, then a cosine to 0 (GPT-1, section 4.1)."""
        part, updates = self.plan.train, self.sampler.updates
        # A run shorter than the paper's warm-up climbs during its first tenth.
        warmup = part.warmup_updates / updates if part.warmup_updates < updates else 0.1
        factor = plan_rates(updates, warmup, "cosine")
        return LoopSettings(
            lambda update: part.learning_rate * factor(update),
            part.epsilon,
            1.0,
            part.max_grad_norm,
            part.seed,
            self.batch_config.max_tokens_per_forward,
        )

    @cached_property
    def schedule(self) -> EvaluationSchedule:
        """Validations evenly over the run, the last one at its end."""
        part, updates = self.plan.train, self.sampler.updates

        def due(update: int) -> bool:
            """With the k-th validation at ⌈updates · k / evaluations⌉: whether one falls here."""
            return update * part.evaluations // updates > (update - 1) * part.evaluations // updates

        return EvaluationSchedule(
            due, None, part.checkpoint_minutes, part.checkpoint_updates, part.most_refused
        )

    def make_microbatches(self, update: int, budget: int | None) -> MicroBatches:
        """The forward passes of an update on this process, and the size of the whole update."""
        indices = self.sampler.indices(update)
        tokens = int(self.lengths.tokens[indices].sum())
        totals = UpdateTotals(0, 0, tokens - len(indices))
        own = shard_by_length(indices, self.lengths, self.accelerator.num_processes)
        mine = own[self.accelerator.process_index]
        groups = batch_by_tokens(
            mine,
            self.lengths,
            self.batch_config.layout,
            budget or self.batch_config.max_tokens_per_forward,
        )
        batches = [self._collate(rows, totals) for rows in groups]
        return MicroBatches(batches, len(indices), tokens, partial(self._idle, indices[:1], totals))

    def _idle(self, rows: np.ndarray, totals: UpdateTotals) -> Batch:
        batch = self._collate(rows, totals)
        return batch._replace(token_weight=batch.token_weight * 0)

    def _collate(self, rows: np.ndarray, totals: UpdateTotals) -> Batch:
        examples = [self.train.blocks[n] for n in rows.tolist()]
        return collate(examples, self.batch_config.layout, self.batch_config.pad_id, totals)

    def find_nonfinite_examples(self, update: int) -> list[str]:
        """Ids of the update's blocks whose loss is not finite; all of them where none is."""
        found, scorer = [], TextScorer(self.decoder)
        examples = [self.train.blocks[n] for n in self.sampler.indices(update).tolist()]
        for example in examples:
            batch = collate([example], self.batch_config.layout, self.batch_config.pad_id)
            with torch.no_grad(), self.accelerator.autocast():
                nats = scorer(to_device(batch, self.accelerator.device)).logits
            found += [] if nats.isfinite().all() else [example.id]
        return found or [example.id for example in examples]

    def started(self, done: int) -> Started:
        """What there is to say before the first update."""
        return Started(
            updates=self.sampler.updates,
            done=done,
            examples=len(self.train.blocks),
            evaluated=len(self.evaluated.blocks) if self.evaluated else 0,
            parameters=sum(part.numel() for part in self.model.parameters()),
            device=str(self.accelerator.device),
            precision="bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            layout=self.batch_config.layout,
            processes=self.accelerator.num_processes,
            cut=0,
            skipped=0,
        )

    def notices(self) -> Iterator[str]:
        """What a person should know of the corpus."""
        for name, text in self._texts():
            yield (
                f"{name}: {text.blocks.targets:,} tokens in {len(text.blocks):,} blocks, "
                f"{text.text_bytes / max(text.blocks.targets, 1):.2f} bytes a token"
            )
        if self.plan.train.warmup_updates >= self.sampler.updates:
            updates, warmup = self.sampler.updates, self.plan.train.warmup_updates
            yield f"{updates} updates are fewer than {warmup} of warm-up: it takes a tenth of them"

    def _texts(self) -> Iterator[tuple[str, TextSplit]]:
        yield "train", self.train
        if self.evaluated:
            yield "evaluate", self.evaluated

    def config_yaml(self) -> str:
        """The plan with every value written out."""
        return dump_plan(self.plan)

    def decisions(self, told: str | None = None) -> dict[str, Any]:
        """Dotted keys of all that decides what a run computes."""
        plan = self.plan if told is None else parse_plan(told)
        return plan.fixed_on_resume(("tokenizer", "shape", "train"))

    def sources(self) -> dict[str, SplitSource]:
        """What was read, by split."""
        return {
            name: SplitSource(text.fingerprint, len(text.blocks)) for name, text in self._texts()
        }

    def origins(self) -> dict[str, str]:
        """Fingerprints of the parts of the base that is trained on; of a new one there are none."""
        return fingerprint_base(self.plan.base, self.decoder) if self.plan.base else {}

    def rounds(self) -> Iterator[RowLogits] | None:
        """The validation text, a forward pass at a time."""
        return self._read(self.decoder) if self.evaluated else None

    def _read(self, decoder: PreTrainedModel) -> Iterator[RowLogits]:
        blocks = cast(TextSplit, self.evaluated).blocks
        return compute_logits(TextScorer(decoder), blocks, self.batch_config, self.accelerator)

    def judge(self, rounds: Iterable[RowLogits]) -> EvaluationScores:
        """Perplexity per token, bits per byte, and nats per token, which decide."""
        text = cast(TextSplit, self.evaluated)
        nats = gather_logits(rounds, len(text.blocks), self.accelerator).sum(dtype=np.float64)
        found = measure_perplexity(float(nats), text.blocks.targets, text.text_bytes)
        return EvaluationScores(found._asdict(), -found.loss)

    def save_model(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """A plain transformers folder: decoder and tokenizer, nothing of ours."""
        halves = self.plan.train.store == "bf16"
        decoder = copy.deepcopy(self.decoder).bfloat16() if halves else self.decoder
        save_decoder(folder, decoder, self.tokenizer)

    def final_scores(
        self, folder: Path, watch: Watch
    ) -> Iterator[Notice | tuple[str, dict[str, float]]]:
        """The validation text read by the model that was saved."""
        if self.evaluated is None:
            yield Notice("no validation text: nothing to score")
            return
        trust = self.plan.trust_remote_code
        part = BaseConfig(path=str(folder.absolute()), dropout=None, trust_remote_code=trust)
        decoder, _ = load_language_model(part)
        rounds = self._read(decoder.to(self.accelerator.device))
        yield "evaluate", self.judge(watch(rounds)).scores
