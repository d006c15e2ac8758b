"""What each choice of fine-tuning is worth on a real base: one change at a time, several seeds.

    python -m benchmarks.ablation --base smollm2-135m --data ../shared/data/glue [--task rte]

Every finished cell is a line of benchmarks/cells/ablation-<base>.jsonl, so a run that was stopped
goes on. `python -m benchmarks.results --write` puts the table into docs/results.md.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import finetune
from benchmarks import peers
from benchmarks.results import ablation_path, device_name, read_lines, score_answers
from finetune.batching import collate as batching
from finetune.models import task_tokens
from finetune.models.task_tokens import TaskTokens
from finetune.training.events import Evaluated

TASKS = {
    "sst2": {"data.limit": 2000, "train.epochs": 1},
    "qnli": {"data.limit": 1500, "train.epochs": 1},
    "rte": {"train.epochs": 3},
}
COMMON = {
    "train.batch_size": 32,
    "train.lm_coefficient": 0,
    "train.precision": "bf16",
    "train.checkpoint_minutes": None,
}
PAPER = {
    "base.new_tokens": "mean",
    "base.dropout": 0.1,
    "train.head_dropout": 0.1,
    "train.schedule": "gpt1",
    "train.warmup": 0.002,
    "train.weight_decay": 0.01,
}
MODERN = {
    "base.new_tokens": "copy",
    "base.dropout": None,
    "train.head_dropout": 0,
    "train.schedule": "linear",
    "train.warmup": 0.1,
    "train.weight_decay": 0.01,
    "train.learning_rate": 1e-4,
}
RATE_5E5 = {"train.learning_rate": 5e-5}
RUN_GLUE = {"train.max_tokens": 128}
PEER = "transformers' Trainer, the run_glue way"


class Arm(NamedTuple):
    """One way to train."""

    changes: Mapping[str, Any]
    patch: Callable[[], Any] = nullcontext
    newline: bool = False
    """The extract token starts as a copy of the newline, the default since most cells were run. In
    the others it is a copy of the token at the end of a text or turn."""


@contextmanager
def read_last_word() -> Iterator[None]:
    """The head reads the token before the extract token."""
    collate = batching.collate

    def shifted(*args: Any, **kwargs: Any) -> batching.Batch:
        batch = collate(*args, **kwargs)
        return batch._replace(last_index=batch.last_index - (batch.last_index >= 0).long())

    with (
        mock.patch("finetune.training.job.collate", shifted),
        mock.patch("finetune.evaluation.evaluate.collate", shifted),
        # The last block must compute the states that are read.
        mock.patch("finetune.models.speedups.optimize.enable_last_token_shortcut"),
    ):
        yield


@contextmanager
def leading_blank() -> Iterator[None]:
    """Every text starts with a blank, as a word inside a text does."""
    tokenize = TaskTokens.tokenize

    def spaced(self: TaskTokens, texts: Any) -> list[list[int]]:
        return tokenize(self, [" " + text for text in texts])

    with (
        mock.patch.object(TaskTokens, "tokenize", spaced),
        tempfile.TemporaryDirectory() as folder,
        # Rows that were encoded without the blank must not be found.
        mock.patch("finetune.data.splits.cache_folder", return_value=Path(folder)),
    ):
        yield


@contextmanager
def copied_from(token: str, name: str) -> Iterator[None]:
    """One of our tokens starts as a copy of a special token that the tokenizer names."""
    similar = task_tokens._similar_tokens

    def other(tokenizer: Any) -> dict[str, int]:
        return {**similar(tokenizer), token: getattr(tokenizer, name)}

    with mock.patch.object(task_tokens, "_similar_tokens", other):
        yield


# Of chats, bos begins a turn and eos ends one.
start_of_turn = partial(copied_from, task_tokens.START, "bos_token_id")
extract_from_end = partial(copied_from, task_tokens.EXTRACT, "eos_token_id")


@contextmanager
def start_of_turn_and_last_word() -> Iterator[None]:
    """Both."""
    with start_of_turn(), read_last_word():
        yield


@contextmanager
def language_of_texts() -> Iterator[None]:
    """The LM loss leaves out the delimiter and extract tokens."""
    collate = batching.collate

    def without(*args: Any, **kwargs: Any) -> batching.Batch:
        batch = collate(*args, **kwargs)
        # Of all targets the extract token has the highest id, and the delimiter the one before.
        weights = batch.token_weight * (batch.lm_target < batch.lm_target.max() - 1)
        return batch._replace(token_weight=weights / weights.sum())

    with mock.patch("finetune.training.job.collate", without):
        yield


ARMS = {
    "modern": Arm(MODERN),
    "modern, twice the epochs": Arm(MODERN),
    "modern, rate 2e-5": Arm({**MODERN, "train.learning_rate": 2e-5}),
    "modern, rate 5e-5": Arm({**MODERN, "train.learning_rate": 5e-5}),
    "modern, rate 2e-4": Arm({**MODERN, "train.learning_rate": 2e-4}),
    "modern, rate 5e-4": Arm({**MODERN, "train.learning_rate": 5e-4}),
    "modern, rows at the mean": Arm({**MODERN, "base.new_tokens": "mean"}),
    "modern, rows drawn": Arm({**MODERN, "base.new_tokens": "random"}),
    "modern, dropout 0.1 before the head": Arm({**MODERN, "train.head_dropout": 0.1}),
    "modern, dropout 0.1 in the decoder": Arm({**MODERN, "base.dropout": 0.1}),
    "modern, head reads the last word": Arm(MODERN, read_last_word),
    "modern, E from the newline": Arm(MODERN, newline=True),
    "modern, E from the newline, states centered": Arm(
        {**MODERN, "head.center_states": True}, newline=True
    ),
    "modern, E from the newline, updates stratified": Arm(
        {**MODERN, "train.stratify": True}, newline=True
    ),
    "modern, E from the newline, states centered, updates stratified": Arm(
        {**MODERN, "head.center_states": True, "train.stratify": True}, newline=True
    ),
    "modern, leading blank": Arm(MODERN, leading_blank),
    "modern, no warm-up": Arm({**MODERN, "train.warmup": 0}),
    "modern, weight decay 0": Arm({**MODERN, "train.weight_decay": 0}),
    "modern, weight decay 0.1": Arm({**MODERN, "train.weight_decay": 0.1}),
    "modern, fp32": Arm({**MODERN, "train.precision": "fp32"}),
    "modern, λ = 0.1": Arm({**MODERN, "train.lm_coefficient": 0.1}),
    "modern, λ = 0.5": Arm({**MODERN, "train.lm_coefficient": 0.5}),
    "modern, λ = 0.5, no LM loss at D and E": Arm(
        {**MODERN, "train.lm_coefficient": 0.5}, language_of_texts
    ),
    "modern, S from the chat": Arm(MODERN, start_of_turn),
    "modern, S from the chat, rate 5e-5": Arm({**MODERN, **RATE_5E5}, start_of_turn),
    "modern, S from the chat, rate 5e-5, schedule of the paper": Arm(
        {**MODERN, **RATE_5E5, "train.schedule": "gpt1", "train.warmup": 0.002}, start_of_turn
    ),
    "modern, S from the chat, rate 2e-4": Arm(
        {**MODERN, "train.learning_rate": 2e-4}, start_of_turn
    ),
    "modern, S from the chat, head reads the last word": Arm(MODERN, start_of_turn_and_last_word),
    "paper without LM loss, rate 5e-5": Arm({**PAPER, **RATE_5E5}),
    "paper without LM loss, rate 1e-4": Arm({**PAPER, "train.learning_rate": 1e-4}),
    "paper": Arm({**PAPER, "train.learning_rate": 6.25e-5, "train.lm_coefficient": 0.5}),
    f"{PEER}, rate 5e-5": Arm({**RUN_GLUE, **RATE_5E5}),
    f"{PEER}, rate 1e-4": Arm({**RUN_GLUE, "train.learning_rate": 1e-4}),
    f"{PEER}, rate 2e-4": Arm({**RUN_GLUE, "train.learning_rate": 2e-4}),
}


def main() -> None:
    """Runs the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", type=Path, required=True, help="a folder with a copy of GLUE")
    parser.add_argument("--task", choices=TASKS, default="sst2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    options = parser.parse_args()
    record = ablation_path(options.base)
    record.parent.mkdir(exist_ok=True)
    names = ("task", "arm", "seed", "device")
    device = device_name()
    done = {tuple(cell[name] for name in names) for cell in read_lines(record)}
    cells = [(options.task, arm, seed, device) for seed in options.seeds for arm in options.arms]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        missing = [cell for cell in cells if cell not in done]
        running = {pool.submit(train, options, *cell[:3]): cell for cell in missing}
        for finished in as_completed(running):
            cell = dict(zip(names, running[finished], strict=True))
            if error := finished.exception():
                print(f"{cell} failed: {error!r}", flush=True)
                continue
            cell |= finished.result()
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell, ensure_ascii=False) + "\n")
            print(cell, flush=True)


def train(options: argparse.Namespace, task: str, name: str, seed: int) -> dict[str, Any]:
    """Trains one cell; returns its score after the best epoch and its seconds."""
    where = {"base.path": options.base, "data.path": str(options.data.resolve())}
    arm = ARMS[name]
    changes = {**COMMON, **TASKS[task], **where, **arm.changes, "train.seed": seed}
    if "twice the epochs" in name:
        changes["train.epochs"] *= 2
    recipe = finetune.load_recipe(task, changes)
    started, metric = time.perf_counter(), recipe.task.metrics[0]
    if name.startswith(PEER):
        score = score_answers(recipe, peers.train_run_glue(recipe).predictions)[metric]
    else:
        extract = nullcontext() if arm.newline else extract_from_end()
        with extract, arm.patch(), tempfile.TemporaryDirectory() as folder:
            run = finetune.events(recipe, Path(folder) / "run")
            # The evaluations after the epochs are enough: the run need not be finished.
            evaluated = (event.scores[metric] for event in run if isinstance(event, Evaluated))
            score = max(islice(evaluated, int(recipe.train.epochs)))
            run.close()
    return {"score": score, "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    main()
