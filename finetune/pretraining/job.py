"""Pre-training from a plan to a folder that is a base (GPT-1, section 3.1)."""

import copy
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.batching.collate import Batch
from finetune.batching.sampler import EpochSampler
from finetune.checkpointing.model_card import build_decoder_card
from finetune.checkpointing.model_folder import save_decoder
from finetune.checkpointing.provenance import fingerprint_base
from finetune.distributed.fsdp import fsdp_requested
from finetune.distributed.setup import (
    choose_batch_config,
    choose_precision,
    create_accelerator,
    describe_own_attention,
    deterministic_kernels,
)
from finetune.evaluation.evaluate import RowLogits, compute_logits, gather_logits
from finetune.models.blocks import checkpoint_activations
from finetune.models.language_model import LanguageModel
from finetune.models.losses import Outputs
from finetune.models.pretrained import (
    DEFAULT_CONTEXT,
    count_positions,
    load_base_tokenizer,
    load_language_model,
)
from finetune.models.task_tokens import find_special_token, fingerprint_tokenizer, tokenize
from finetune.pretraining.architectures import build_decoder
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.corpus import Corpus, open_corpus
from finetune.pretraining.encoded_corpus import encode_corpus
from finetune.pretraining.plan import Plan, PretrainConfig, find_stable_end
from finetune.pretraining.tokenizer import learn_tokenizer
from finetune.recipe.schema import BaseConfig
from finetune.storage.files import replace_folder, write_atomically
from finetune.training.events import Event, Notice, Result
from finetune.training.job import (
    Evaluation,
    EvaluationSchedule,
    SplitSource,
    TrainingJob,
    loop_settings,
)
from finetune.training.log import log_events
from finetune.training.optimizer import (
    build_optimizer,
    pretraining_factor,
    stable_decay_factor,
)
from finetune.training.progress import spread_evenly
from finetune.training.runner import collect_result, run
from finetune.training.trackers import check_trackers, track
from task_formats import UsageError

_MAX_LOSS = 700.0
"""Nats per token; the perplexity of more is beyond floating point."""


def pretrain(
    plan: Plan, folder: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Result:
    """Pre-trains a decoder on plain text.

    Args:
        plan: Corpus, tokenizer, shape and training settings.
        folder: The run folder; when the run is finished it is a base.
        resume: Continue the run in the folder from its latest checkpoint.
        overwrite: Delete the run in the folder first.

    Returns:
        Perplexity, bits per byte and loss of the best model.

    Raises:
        UsageError: Something is wrong with plan, corpus or folder.
        Interrupted: A signal asked the run to stop.
    """
    return collect_result(events(plan, folder, resume=resume, overwrite=overwrite))


def events(
    plan: Plan, folder: Path | str, *, resume: bool = False, overwrite: bool = False
) -> Iterator[Event]:
    """Pre-trains as `pretrain` does, and yields every update and evaluation when it is done."""
    if fsdp_requested():
        what = "pre-training does not support FSDP"
        raise UsageError(what, cure="Omit --use_fsdp: it runs data-parallel.")
    accelerator = create_accelerator(choose_precision(plan.train.precision))
    prepare = partial(prepare_pretraining, plan, Path(folder))
    options = {"resume": resume, "overwrite": overwrite}
    check_trackers(plan.train)
    with deterministic_kernels(plan.train.deterministic):
        events = run(prepare, Path(folder), accelerator, plan, **options)
        events = log_events(events, Path(folder), accelerator.is_main_process)
        yield from track(events, plan, plan.train, Path(folder), accelerator)


@dataclass(frozen=True)
class TextSplit:
    """The token blocks of one split."""

    blocks: TokenBlocks
    text_bytes: int
    """UTF-8 bytes of the text, for bits per byte."""
    fingerprint: str


class TextScorer(LanguageModel):
    """A decoder whose output for each example is its negative log-likelihood."""

    def forward(self, batch: Batch, lm: bool = False) -> Outputs:
        """(N, 1) negative log-likelihoods in nats, summed over the targets of each example."""
        states = self.backbone.hidden_states(batch)[batch.lm_index]
        nats = self.backbone.token_losses(states, batch.lm_target)
        examples = batch.example_id.flatten()[batch.lm_index]
        sums = nats.new_zeros(len(batch.last_index)).index_add(0, examples, nats)
        return Outputs(sums[:, None], nats.new_zeros(()))


@dataclass(frozen=True, kw_only=True)
class PretrainingJob(TrainingJob):
    """A pre-training run, ready for its first update."""

    config: Plan
    model: LanguageModel
    decoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    evaluation_text: TextSplit | None

    def evaluation(self) -> Evaluation | None:
        """Returns the evaluation of the current decoder; None without an evaluation split."""
        text = self.evaluation_text
        return None if text is None else self._evaluation(self.decoder, text)

    def _evaluation(self, decoder: PreTrainedModel, text: TextSplit) -> Evaluation:
        def score(passes: Iterable[RowLogits]) -> dict[str, float]:
            table = gather_logits(passes, len(text.blocks), self.accelerator)
            nats = float(table.sum(dtype=np.float64))
            loss = nats / text.blocks.targets
            # Bits per byte do not depend on the tokenizer, so decoders with other ones compare.
            bits_per_byte = nats / math.log(2) / text.text_bytes
            perplexity = math.exp(loss) if loss < _MAX_LOSS else math.inf
            return {"perplexity": perplexity, "bits_per_byte": bits_per_byte, "loss": loss}

        passes = compute_logits(
            TextScorer(decoder), text.blocks, self.batch_config, self.accelerator
        )
        return Evaluation("evaluate", passes, score)

    def selection_value(self, scores: Mapping[str, float]) -> float:
        """Returns the negative loss: the best decoder has the lowest."""
        return -scores["loss"]

    def save_model(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Writes decoder and tokenizer as transformers does."""
        half = self.config.train.store == "bf16"
        decoder = copy.deepcopy(self.decoder).bfloat16() if half else self.decoder
        save_decoder(folder, decoder, self.tokenizer)

    def final_evaluations(self, folder: Path) -> Iterator[Notice | Evaluation]:
        """Yields the evaluation of the saved decoder."""
        if self.evaluation_text is None:
            yield Notice("there is no evaluation text, so the decoder is not scored")
            return
        trust = self.config.trust_remote_code
        config = BaseConfig(path=str(folder.absolute()), dropout=None, trust_remote_code=trust)
        decoder, _ = load_language_model(config)
        yield self._evaluation(decoder.to(self.accelerator.device), self.evaluation_text)

    def model_card(self, name: str, result: Mapping[str, Any]) -> str:
        """Returns the README.md of the saved decoder, from the content of result.json."""
        return str(build_decoder_card(name, result["scores"]))


def prepare_pretraining(plan: Plan, folder: Path, accelerator: Accelerator) -> PretrainingJob:
    """Builds decoder and tokenizer, and encodes the corpus.

    Raises:
        UsageError: Plan, corpus or base do not fit together.
    """
    config = plan.train
    corpus_folder = Path(plan.corpus.shards) if plan.corpus.shards else folder / "corpus"
    # The main process writes tokenizer and tokens; the others then read them.
    with accelerator.main_process_first():
        names = {"train": plan.corpus.train, "evaluate": plan.corpus.evaluate}
        corpora = {
            split: open_corpus(plan.corpus, paths) for split, paths in names.items() if paths
        }
        decoder, tokenizer = _load(plan, corpora["train"], corpus_folder)
        texts = {
            split: _encode_text(plan, corpus, decoder, tokenizer, corpus_folder / split)
            for split, corpus in corpora.items()
        }
    blocks = texts["train"].blocks
    if config.activation_checkpointing:
        checkpoint_activations(decoder)
    model = LanguageModel(decoder.to(accelerator.device))
    sampler = _build_sampler(config, len(blocks))
    updates = sampler.updates
    factor, warmup_is_shorter = _choose_schedule(config, updates)
    tokens = blocks.compute_lengths().tokens
    # Blocks of one length are fastest as separate rows; short documents are packed.
    equal_lengths = tokens.mean() > 0.9 * tokens.max()
    notices = [_describe_text(name, text) for name, text in texts.items()]
    if not equal_lengths and (notice := describe_own_attention(decoder)):
        notices.append(notice)
    if warmup_is_shorter:
        few = f"{updates} updates, which are fewer than {config.warmup_updates}"
        notices.append(f"warm-up: a tenth of the {few}")
    return PretrainingJob(
        config=plan,
        fixed_sections=("tokenizer", "shape", "train"),
        model=model,
        optimizer=build_optimizer(model.parameters(), config),
        accelerator=accelerator,
        batch_config=choose_batch_config(
            decoder,
            accelerator,
            pad_id=0,
            layout="separate" if equal_lengths else "auto",
            max_tokens=config.tokens_per_forward,
            training=True,
        ),
        examples=blocks,
        sampler=sampler,
        settings=loop_settings(
            config,
            lambda update: config.learning_rate * factor(update),
            lm_coefficient=1.0,
        ),
        schedule=EvaluationSchedule.of(config, spread_evenly(updates, config.evaluations))._replace(
            checkpoint_at=_find_decay_checkpoint(config, updates)
        ),
        sources={
            name: SplitSource(text.fingerprint, len(text.blocks)) for name, text in texts.items()
        },
        base_fingerprints=_fingerprint(plan, decoder, tokenizer),
        notices=tuple(notices),
        decoder=decoder,
        tokenizer=tokenizer,
        evaluation_text=texts.get("evaluate"),
    )


def _encode_text(
    plan: Plan,
    corpus: Corpus,
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> TextSplit:
    """Encodes the text of a split in a folder named after it, unless that was done before."""
    context, end_id = _context(plan, decoder), _document_separator(tokenizer)
    content = corpus.fingerprint()
    encoded = encode_corpus(
        corpus.read(),
        partial(tokenize, tokenizer),
        folder,
        key=json.dumps([content, fingerprint_tokenizer(tokenizer), len(tokenizer), end_id]),
        vocabulary_size=len(tokenizer),
        end_id=end_id,
        total_bytes=corpus.estimate_bytes(),
    )
    blocks = TokenBlocks(encoded, context, folder.name, plan.train.mix_documents)
    return TextSplit(blocks, encoded.text_bytes, content)


def _describe_text(split: str, text: TextSplit) -> str:
    targets = text.blocks.targets
    return (
        f"{split}: {targets:,} tokens in {len(text.blocks):,} blocks, "
        f"{text.text_bytes / max(targets, 1):.2f} bytes per token"
    )


def _build_sampler(config: PretrainConfig, blocks: int) -> EpochSampler:
    batch_size = min(config.batch_size, blocks)
    updates_per_epoch = blocks // batch_size
    epochs = config.updates / updates_per_epoch if config.updates else config.epochs
    return EpochSampler(blocks, batch_size, epochs, config.seed, drop_incomplete=True)


def _choose_schedule(config: PretrainConfig, updates: int) -> tuple[Callable[[int], float], bool]:
    """The factor of the learning rate by update, and whether the warm-up had to be shortened.

    A run that is too short for the warm-up climbs during its first tenth.
    """
    stable_end = find_stable_end(updates, config.decay) if config.schedule == "wsd" else updates
    is_shorter = config.warmup_updates >= stable_end
    if config.schedule == "cosine":
        warmup = 0.1 if is_shorter else config.warmup_updates / updates
        return lambda update: pretraining_factor(update, updates, warmup), is_shorter
    climb = updates // 10 if is_shorter else config.warmup_updates
    return lambda update: stable_decay_factor(update, climb, stable_end, updates), is_shorter


def _find_decay_checkpoint(config: PretrainConfig, updates: int) -> int | None:
    """With `wsd` the last update of the constant rate: longer runs can go on from there."""
    return find_stable_end(updates, config.decay) if config.schedule == "wsd" else None


def _fingerprint(
    plan: Plan, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, str]:
    """Identifies the base, or the tokenizer of a new decoder."""
    if plan.base is not None:
        return fingerprint_base(plan.base, decoder)
    content = fingerprint_tokenizer(tokenizer)
    return {"tokenizer": content} if content else {}


def _load(
    plan: Plan, corpus: Corpus, folder: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The decoder and its tokenizer: those of the plan's base, or new ones."""
    trust = plan.trust_remote_code
    if plan.base is not None:
        config = BaseConfig(path=plan.base, dropout=plan.train.dropout, trust_remote_code=trust)
        return load_language_model(config)
    if plan.tokenizer.path is not None:
        config = BaseConfig(path=plan.tokenizer.path, trust_remote_code=trust)
        tokenizer = load_base_tokenizer(config)
    else:
        tokenizer = _learn_tokenizer(plan, corpus, folder / "tokenizer")
    return build_decoder(plan, len(tokenizer), _document_separator(tokenizer)), tokenizer


def _learn_tokenizer(plan: Plan, corpus: Corpus, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`; it is learned from the corpus unless that was done before."""
    key = f"{corpus.fingerprint()} {plan.tokenizer.vocabulary} {plan.shape.positions}\n"
    record = folder / "learned_from.txt"
    if not record.exists() or record.read_text("utf-8") != key:
        pieces = chain.from_iterable(corpus.read())
        learned = learn_tokenizer(pieces, plan.tokenizer.vocabulary, plan.shape.positions)
        with replace_folder(folder) as partial_folder:
            learned.save_pretrained(partial_folder)
            write_atomically(partial_folder / record.name, key)
    return load_base_tokenizer(BaseConfig(path=str(folder.absolute())))


def _context(plan: Plan, decoder: PreTrainedModel) -> int:
    """Tokens of a block."""
    positions = count_positions(decoder)
    context = plan.train.context or positions or DEFAULT_CONTEXT
    if positions is not None and context > positions:
        what = f"train.context is {context}, but the base reads at most {positions} tokens"
        raise UsageError(what, cure=f"Set it to {positions} or less.")
    return context


def _document_separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token between documents: the end of text, or the nearest to it."""
    token = find_special_token(tokenizer, "eos", "bos", "pad")
    if token is None:
        what = "the tokenizer has no special token to separate documents"
        cure = "Name one of its tokens as eos_token in its tokenizer_config.json."
        raise UsageError(what, where=tokenizer.name_or_path, cure=cure)
    return token
