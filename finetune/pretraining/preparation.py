"""Everything that pre-training needs before its first update: decoder, tokenizer, shards."""

import hashlib
import json
from pathlib import Path
from typing import cast

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.distributed.setup import choose_layout, choose_max_tokens_per_forward
from finetune.evaluation.evaluate import BatchConfig
from finetune.models.language_model import LanguageModel
from finetune.models.pretrained import (
    DEFAULT_CONTEXT,
    count_positions,
    load_base_tokenizer,
    load_language_model,
)
from finetune.models.task_tokens import find_special_token, tokenize
from finetune.pretraining.architectures import build_decoder
from finetune.pretraining.blocks import TokenBlocks
from finetune.pretraining.corpus import Corpus, open_corpus
from finetune.pretraining.job import PretrainingJob, TextSplit
from finetune.pretraining.plan import Plan
from finetune.pretraining.token_shards import ShardManifest, write_shards
from finetune.pretraining.tokenizer import learn_tokenizer
from finetune.recipe.schema import BaseConfig, TrainConfig
from finetune.storage.files import replace_folder, write_atomically
from finetune.training.optimizer import build_optimizer
from task_formats import UsageError


def prepare_pretraining(plan: Plan, folder: Path, accelerator: Accelerator) -> PretrainingJob:
    """Reads, tokenises and builds everything. UsageError for whatever does not fit."""
    home = Path(plan.corpus.shards) if plan.corpus.shards else folder / "corpus"
    # One process writes tokenizer and shards; the others then find them there.
    with accelerator.main_process_first():
        corpora = {
            name: open_corpus(plan.corpus, paths)
            for name, paths in (("train", plan.corpus.train), ("evaluate", plan.corpus.evaluate))
            if paths
        }
        decoder, tokenizer = _load(plan, corpora["train"], home)
        texts = {
            name: _encode(plan, corpus, tokenizer, home, name, _context(plan, decoder))
            for name, corpus in corpora.items()
        }
    model = LanguageModel(decoder.to(accelerator.device))
    part = TrainConfig(**plan.train.model_dump(include=_SHARED))
    sizes = texts["train"].blocks.compute_lengths()
    # Blocks of one length stand best in rows of their own; short documents are packed.
    even = sizes.tokens.mean() > 0.9 * sizes.tokens.max()
    layout = choose_layout(part, decoder, chooses=False)
    batch_config = BatchConfig(
        "separate" if even else layout,
        0,
        choose_max_tokens_per_forward(part, decoder, accelerator.device),
    )
    return PretrainingJob(
        plan,
        decoder,
        tokenizer,
        model,
        cast(nn.Module, accelerator.prepare_model(model)),
        build_optimizer(model.parameters(), part),
        accelerator,
        batch_config,
        texts["train"],
        texts.get("evaluate"),
    )


_SHARED = {"learning_rate", "weight_decay", "betas", "epsilon", "tokens_per_forward"}
"""What pre-training and fine-tuning tell the optimizer and the device alike."""


def _load(
    plan: Plan, corpus: Corpus, home: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The decoder to train with its tokenizer: an old one, or a new one of the plan's shape."""
    trust = plan.trust_remote_code
    if plan.base is not None:
        part = BaseConfig(path=plan.base, dropout=plan.train.dropout, trust_remote_code=trust)
        return load_language_model(part)
    if plan.tokenizer.path is not None:
        part = BaseConfig(path=plan.tokenizer.path, trust_remote_code=trust)
        tokenizer = load_base_tokenizer(part)
    else:
        tokenizer = _learn(plan, corpus, home / "tokenizer")
    decoder = build_decoder(
        plan.shape,
        len(tokenizer),
        _end(tokenizer),
        dropout=plan.train.dropout,
        initial_std=plan.train.initial_spread,
        seed=plan.train.seed,
    )
    return decoder, tokenizer


def _learn(plan: Plan, corpus: Corpus, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, learned from the corpus unless that has been done already."""
    key = f"{corpus.fingerprint()} {plan.tokenizer.vocabulary} {plan.shape.positions}\n"
    note = folder / "learned_from.txt"
    if not note.exists() or note.read_text("utf-8") != key:
        texts = (piece for document in corpus.read() for piece in document.pieces)
        learned = learn_tokenizer(texts, plan.tokenizer.vocabulary, plan.shape.positions)
        with replace_folder(folder) as partial_folder:
            learned.save_pretrained(partial_folder)
            write_atomically(partial_folder / note.name, key)
    return load_base_tokenizer(BaseConfig(path=str(folder.absolute())))


def _encode(
    plan: Plan,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    home: Path,
    name: str,
    context: int,
) -> TextSplit:
    """The blocks of a split; its shards are written unless they are there already."""
    content = corpus.fingerprint()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tokens = hashlib.sha256(backend.to_str().encode()).hexdigest() if backend else None
    key = json.dumps([content, tokens])
    start = ShardManifest(key, len(tokenizer), _end(tokenizer))
    shards = write_shards(
        corpus.read(), lambda texts: tokenize(tokenizer, texts), home / name, start
    )
    blocks = TokenBlocks(shards, context, name, plan.train.mix_documents)
    return TextSplit(blocks, shards.manifest.text_bytes, content)


def _context(plan: Plan, decoder: PreTrainedModel) -> int:
    """Tokens of a block."""
    positions = count_positions(decoder)
    context = plan.train.context or positions or DEFAULT_CONTEXT
    if positions is not None and context > positions:
        raise UsageError(
            f"the base reads {positions} tokens and train.context is {context}",
            where="train.context",
            cure="Set it to what the base reads, or less.",
        )
    return context


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of what stands between documents: the end of text, or what comes nearest to it."""
    end = find_special_token(tokenizer, "eos", "bos", "pad")
    if end is None:
        raise UsageError(
            "the tokenizer has no special token that could stand between documents",
            where=tokenizer.name_or_path,
            cure="Name one of its tokens as eos_token in its tokenizer_config.json.",
        )
    return end
