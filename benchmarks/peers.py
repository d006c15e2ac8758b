"""The other side: what people run today."""

import tempfile
from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import material
from benchmarks.contest import Found, Scale, clock
from benchmarks.ours import BATCH, WARM, WIDTH

Features = list[dict[str, Any]]


def tokenizer(scale: Scale, shape: str = "small") -> PreTrainedTokenizerBase:
    """The base's tokenizer with a pad token, as run_glue wants it."""
    found = AutoTokenizer.from_pretrained(material.base(scale, shape))
    found.pad_token = found.eos_token
    return found


def pairs(scale: Scale, split: str, count: int | None = None, *, padded: bool) -> Features:
    """RTE's pairs as run_glue prepares them: token ids cut to 128, and padded to that or not."""
    rows = material.rte(scale, split)[:count]
    firsts, seconds = ([row[name] for row in rows] for name in ("sentence1", "sentence2"))
    padding = "max_length" if padded else False
    encoded = tokenizer(scale)(firsts, seconds, truncation=True, max_length=WIDTH, padding=padding)
    return [
        {
            "input_ids": encoded["input_ids"][n],
            "attention_mask": encoded["attention_mask"][n],
            "labels": int(row["label"] == "not_entailment"),
        }
        for n, row in enumerate(rows)
    ]


def classifier(scale: Scale, shape: str = "small") -> PreTrainedModel:
    """The library's own decoder with a classification head."""
    model = GPT2ForSequenceClassification.from_pretrained(material.base(scale, shape))
    model.config.pad_token_id = model.config.eos_token_id
    return model


def make_trainer(
    scale: Scale, model: nn.Module, folder: str, *, bf16: bool = False, **options: Any
) -> Trainer:
    """A Trainer with its defaults, but for what keeps files and logs away."""
    rest = {name: options.pop(name) for name in ("train_dataset", "callbacks") if name in options}
    settings = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", **options}
    arguments = TrainingArguments(folder, use_cpu=True, bf16=bf16, disable_tqdm=True, **settings)
    collator = DataCollatorWithPadding(tokenizer(scale))
    return Trainer(model, arguments, data_collator=collator, **rest)


class _Tell(TrainerCallback):
    """Puts the examples of every update into a queue."""

    def __init__(self) -> None:
        self.done: Queue[int] = Queue()

    def on_step_end(self, *_: object, **__: object) -> None:
        """One update more."""
        self.done.put(BATCH)


def train_rte(
    scale: Scale, *, shape: str = "small", updates: int, padded: bool = True, bf16: bool = False,
    naive_lm: bool = False,
) -> Found:  # fmt: skip
    """Updates of Trainer over 32 RTE pairs after those to warm up."""
    model = NaiveModel(scale, shape) if naive_lm else classifier(scale, shape)
    rows = pairs(scale, "train", BATCH * (updates + WARM), padded=padded)
    tell = _Tell()

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                scale, model, folder, bf16=bf16, train_dataset=rows, callbacks=[tell],
                per_device_train_batch_size=BATCH, num_train_epochs=1,
            )  # fmt: skip
            worker = Thread(target=trainer.train)
            worker.start()
            for _ in range(updates + WARM):
                yield tell.done.get()
            worker.join()

    return clock(steps(), WARM)


class NaiveModel(nn.Module):
    """Task + 0.5 · LM as one writes it down: all logits of all rows, cross-entropy over them."""

    def __init__(self, scale: Scale, shape: str = "small") -> None:
        super().__init__()
        self.decoder = GPT2LMHeadModel.from_pretrained(material.base(scale, shape))
        self.head = nn.Linear(self.decoder.config.n_embd, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """Rows of ids, padded on the right, to {"loss", "logits"}."""
        found = self.decoder(input_ids, attention_mask=attention_mask, output_hidden_states=True)
        ends = attention_mask.sum(1) - 1
        read = found.hidden_states[-1][torch.arange(len(ends)), ends]
        logits = self.head(read)
        lm = mean_of_views(found.logits, input_ids, attention_mask)
        return {"loss": cross_entropy(logits.float(), labels) + 0.5 * lm, "logits": logits}


def mean_of_views(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, T, V) logits to the mean over rows of the mean over a row's targets."""
    goals = tokens.masked_fill(mask == 0, -100)[:, 1:]
    nll = cross_entropy(logits[:, :-1].float().transpose(1, 2), goals, reduction="none")
    return (nll.sum(1) / (goals >= 0).sum(1)).mean()
