"""The peers: what people use today."""

import math
import tempfile
import time
from collections.abc import Iterator
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import inputs
from benchmarks.gptft import BATCH, WARM, WIDTH
from benchmarks.harness import Measurement, Scale, clock
from finetune.data.examples import read_examples
from finetune.data.sources import open_rows
from finetune.evaluation.metrics import compute_metrics, selection_value
from finetune.models.pretrained import find_base
from finetune.recipe.schema import Recipe
from task_formats import Task

Features = list[dict[str, Any]]


def tokenizer(scale: Scale, shape: str = "small") -> PreTrainedTokenizerBase:
    """The tokenizer of the base with a pad token, as run_glue sets it."""
    tokenizer = AutoTokenizer.from_pretrained(inputs.base(scale, shape))
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pairs(scale: Scale, split: str, count: int | None = None, *, padded: bool) -> Features:
    """Pairs of RTE as run_glue prepares them: ids truncated, and optionally padded, to 128."""
    rows = inputs.rte(scale, split)[:count]
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
    """The decoder of transformers with its own classification head."""
    model = GPT2ForSequenceClassification.from_pretrained(inputs.base(scale, shape))
    model.config.pad_token_id = model.config.eos_token_id
    return model


def make_trainer(
    scale: Scale, model: nn.Module, folder: str, *, bf16: bool = False, **options: Any
) -> Trainer:
    """A Trainer with default settings, without files and logs."""
    data = {name: options.pop(name) for name in ("train_dataset", "callbacks") if name in options}
    settings = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", **options}
    arguments = TrainingArguments(folder, use_cpu=True, bf16=bf16, disable_tqdm=True, **settings)
    collator = DataCollatorWithPadding(tokenizer(scale))
    return Trainer(model, arguments, data_collator=collator, **data)


class _CountUpdates(TrainerCallback):
    """Puts the number of examples of every update into a queue."""

    def __init__(self) -> None:
        self.done: Queue[int] = Queue()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Counts one update."""
        self.done.put(BATCH)


def train_rte(
    scale: Scale, *, shape: str = "small", updates: int, padded: bool = True, bf16: bool = False,
    naive_lm: bool = False,
) -> Measurement:  # fmt: skip
    """Trains updates of 32 RTE pairs with Trainer after the warm-up."""
    model = NaiveModel(scale, shape) if naive_lm else classifier(scale, shape)
    rows = pairs(scale, "train", BATCH * (updates + WARM), padded=padded)
    counter = _CountUpdates()

    def steps() -> Iterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                scale, model, folder, bf16=bf16, train_dataset=rows, callbacks=[counter],
                per_device_train_batch_size=BATCH, num_train_epochs=1,
            )  # fmt: skip
            worker = Thread(target=trainer.train)
            worker.start()
            for _ in range(updates + WARM):
                yield counter.done.get()
            worker.join()

    return clock(steps(), WARM)


class NaiveModel(nn.Module):
    """Task + 0.5 · LM loss, implemented directly: cross-entropy over all logits."""

    def __init__(self, scale: Scale, shape: str = "small") -> None:
        super().__init__()
        self.decoder = GPT2LMHeadModel.from_pretrained(inputs.base(scale, shape))
        self.head = nn.Linear(self.decoder.config.n_embd, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """Returns loss and logits of (B, T) ids that are padded on the right."""
        outputs = self.decoder(input_ids, attention_mask=attention_mask, output_hidden_states=True)
        ends = attention_mask.sum(1) - 1
        read = outputs.hidden_states[-1][torch.arange(len(ends)), ends]
        logits = self.head(read)
        lm = mean_of_views(outputs.logits, input_ids, attention_mask)
        return {"loss": cross_entropy(logits.float(), labels) + 0.5 * lm, "logits": logits}


def mean_of_views(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over rows of the mean loss of a row's targets; logits are (B, T, V)."""
    targets = tokens.masked_fill(mask == 0, -100)[:, 1:]
    nll = cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, reduction="none")
    return (nll.sum(1) / (targets >= 0).sum(1)).mean()


class PeerRun(NamedTuple):
    """What a peer predicts after training."""

    predictions: list[str | float]
    """One per row of the evaluation split."""
    seconds: float
    """Of training with its evaluations, without loading."""


def train_run_glue(recipe: Recipe) -> PeerRun:
    """Trains on a recipe's rows the way run_glue does and predicts the evaluation split.

    The recipe's base, rows, epochs, batch size, learning rate, precision, seed and maximum length
    are used; everything else is what run_glue and Trainer take by default: no warm-up, linear
    decay, weight decay 0, the base's own dropout, states read at the last token. As gptft does, it
    evaluates every epoch and keeps the best one.
    """
    task, config, base = recipe.task.build(), recipe.train, find_base(recipe.base.path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    splits = {name: _features(recipe, task, tokenizer, getattr(recipe.data, name))
              for name in ("train", "evaluate")}  # fmt: skip
    torch.manual_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=task.labels.num_outputs, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    positive, best = task.positive_class, (-math.inf, [])
    gold = [task.labels.name(row["labels"]) for row in splits["evaluate"]]

    def score(outputs: EvalPrediction) -> dict[str, float]:
        nonlocal best
        found = [task.labels.decode("", row.tolist()).label for row in outputs.predictions]
        scores = compute_metrics(recipe.task.metrics, found, gold, positive)
        value = selection_value(scores, recipe.task.metrics, recipe.task.select)
        if not value <= best[0]:  # Also after a correlation that was not defined.
            best = value, found
        return scores

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, use_cpu=not torch.cuda.is_available(), bf16=config.precision == "bf16",
            eval_strategy="epoch", per_device_eval_batch_size=64,
            disable_tqdm=True, report_to=[], save_strategy="no", logging_strategy="no",
            per_device_train_batch_size=config.batch_size, num_train_epochs=config.epochs,
            learning_rate=config.learning_rate, seed=config.seed,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, train_dataset=splits["train"], eval_dataset=splits["evaluate"],
            data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=score,
        )  # fmt: skip
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return PeerRun(best[1], seconds)


def _features(
    recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, split: str
) -> Features:
    """Texts or pairs of a split as run_glue prepares them; padding is left to the collator."""
    examples, _ = read_examples(task, open_rows(recipe.data, split), split, limit=recipe.data.limit)
    features = []
    for example in examples:
        texts = list(example.fields.values())
        encoded = tokenizer(*texts, truncation=True, max_length=recipe.train.max_tokens)
        names = ("input_ids", "attention_mask")
        features.append({**{name: encoded[name] for name in names}, "labels": example.label})
    return features
