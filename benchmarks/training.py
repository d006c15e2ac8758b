"""Examples per second of training, beside transformers' Trainer used the run_glue way.

Each contender trains the same gpt2-shaped decoder with random weights on the same RTE pairs in a
process of its own; contenders take turns for some rounds, and medians and ratios are printed.

    python benchmarks/training.py --shape small --precision fp32 --rounds 3
    python benchmarks/training.py --shape tiny --lm

Peers: Trainer padding every pair to 128 tokens, and with --lm a plain loop over the naive loss
(task + 0.5 · LM, all logits in memory, rows padded to the longest).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SHAPES = {"small": {}, "tiny": {"n_layer": 4, "n_embd": 256, "n_head": 4}}
BATCH, WIDTH = 32, 128


def main() -> None:
    """Run all contenders in turn, or with --contender one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lm", action="store_true", help="with the auxiliary LM loss")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3, help="timed updates of a round")
    parser.add_argument("--glue", default="../shared/data/glue", help="GLUE's own folders")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        steps = {"gptft": ours, "trainer": trainer, "naive": naive}[options.contender](options)
        next(steps)  # The first update warms up.
        began = time.perf_counter()
        for _ in range(options.updates):
            next(steps)
        rate = BATCH * options.updates / (time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rate": rate, "peak": peak}), flush=True)
        os._exit(0)  # The peer's thread may still be training.
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder), options.shape)
        compete(folder, "naive" if options.lm else "trainer", options.rounds)


def compete(base: str, peer: str, rounds: int) -> None:
    """Print medians of interleaved rounds, and the ratio."""
    found: dict[str, list[dict[str, float]]] = {peer: [], "gptft": []}
    for _ in range(rounds):
        for name, rows in found.items():
            command = [sys.executable, *sys.argv, "--contender", name, "--base", base]
            line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append(json.loads(line.splitlines()[-1]))
    for name, rows in found.items():
        rate, peak = (statistics.median(row[key] for row in rows) for key in ("rate", "peak"))
        print(f"{name:8} {rate:8.2f} examples/s  peak {peak:7.0f} MiB")
    ratios = [a["rate"] / b["rate"] for a, b in zip(found["gptft"], found[peer], strict=True)]
    print(f"ratio    {statistics.median(ratios):8.2f} (of {rounds} rounds: {sorted(ratios)})")


def make_base(folder: Path, shape: str) -> None:
    """A gpt2-shaped decoder with random weights, and the shipped base's tokenizer."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**SHAPES[shape], loss_type="ForCausalLM", pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    shipped = Path(__file__).parents[1] / "finetune" / "shipped" / "tiny"
    AutoTokenizer.from_pretrained(shipped).save_pretrained(folder)


def ours(options: argparse.Namespace) -> Iterator[object]:
    """Updates as `gptft train` makes them."""
    from finetune.devices import start_processes
    from finetune.job import prepare_job
    from finetune.loop import optimize
    from finetune.recipe_files import load_recipe

    changes = {
        "base.path": options.base,
        "data.path": options.glue,
        "data.evaluate": None,
        "train.lm_coefficient": 0.5 if options.lm else 0,
        "train.precision": options.precision,
        "train.max_tokens": WIDTH,
    }
    recipe = load_recipe("rte", changes)
    job = prepare_job(recipe, recipe.task.build(), start_processes(options.precision))
    updates = range(1, job.order.updates + 1)
    yield from optimize(
        job.wrapped, job.optimizer, updates, job.forwards, job.settings, job.accelerator
    )


def texts(options: argparse.Namespace) -> list[dict[str, object]]:
    """RTE's training pairs as token ids, cut to 128, with labels."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.base)
    tokenizer.pad_token = tokenizer.eos_token
    lines = (Path(options.glue) / "RTE" / "train.tsv").read_text("utf-8").split("\n")[1:-1]
    rows = [line.split("\t") for line in lines]
    padding = False if options.lm else "max_length"
    encoded = tokenizer(
        [row[1] for row in rows], [row[2] for row in rows],
        truncation=True, max_length=WIDTH, padding=padding,
    )  # fmt: skip
    names = ("input_ids", "attention_mask")
    labels = [int(row[3] == "not_entailment") for row in rows]
    return [
        {**{name: encoded[name][n] for name in names}, "labels": label}
        for n, label in enumerate(labels)
    ]


def trainer(options: argparse.Namespace) -> Iterator[object]:
    """Updates of transformers' Trainer; the time between two is the time of one."""
    import queue
    import threading

    from transformers import GPT2ForSequenceClassification, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    done: queue.Queue[int] = queue.Queue()

    class Tell(TrainerCallback):
        """Puts a number in the queue after every update."""

        def on_step_end(self, *_: object, **__: object) -> None:
            """One update more."""
            done.put(1)

    model = GPT2ForSequenceClassification.from_pretrained(options.base)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Arguments(
            folder, per_device_train_batch_size=BATCH, bf16=options.precision == "bf16",
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            max_steps=options.updates + 1, logging_strategy="no",
        )  # fmt: skip
        peer = Trainer(model, arguments, train_dataset=texts(options), callbacks=[Tell()])
        threading.Thread(target=peer.train, daemon=True).start()
        while True:
            yield done.get()


def naive(options: argparse.Namespace) -> Iterator[object]:
    """Updates of a plain loop: padded rows, all logits, task + 0.5 · LM."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(options.base).train()
    head = torch.nn.Linear(model.config.n_embd, 2)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=6.25e-5)
    rows = texts(options)
    for at in range(0, len(rows) - BATCH, BATCH):
        part = rows[at : at + BATCH]
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in part], batch_first=True)
        lengths = torch.tensor([len(row["input_ids"]) for row in part])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            out = model(ids, attention_mask=mask.long(), output_hidden_states=True)
            read = head(out.hidden_states[-1][torch.arange(len(part)), lengths - 1])
        goals = ids.masked_fill(~mask, -100)[:, 1:]
        lm = cross_entropy(out.logits[:, :-1].float().transpose(1, 2), goals)
        loss = cross_entropy(read.float(), torch.tensor([row["labels"] for row in part])) + lm / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        yield loss


if __name__ == "__main__":
    main()
