"""How long saving a checkpoint delays training: gpt2-small with AdamW, in seconds per save.

Windows of updates that begin with a save alternate with windows without one. The cost of a save is
the time of its copy, plus the extra time of the updates during the write.

    python benchmarks/checkpoint_cost.py --rounds 5 --seconds 20
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.checkpointing.checkpoint import (
    CheckpointWriter,
    capture_state,
    load_latest_checkpoint,
)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="length of a window")
    parser.add_argument("--folder", help="folder of the checkpoints; default: temporary")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(GPT2Config(loss_type="ForCausalLM")).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    updates = train(model, optimizer, device)
    for _ in range(3):
        next(updates)
    size = sum(tensor.nbytes for tensor in capture_state(model, optimizer).values())
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saver = CheckpointWriter(Path(folder))
        saver.save(0, capture_state(model, optimizer), {})  # the first one also allocates memory
        saver.wait()
        costs = []
        for number in range(1, options.rounds + 1):
            alone = statistics.median(window(updates, options.seconds))
            copied = clock(lambda n=number: saver.save(n, capture_state(model, optimizer), {}))
            beside = sum(took - alone for took in window(updates, options.seconds))
            saver.wait()
            costs.append(copied + beside)
            print(
                f"update {alone:.2f} s; save: copy {copied:.2f} s, updates beside {beside:+.2f} s"
            )
        read = clock(lambda: load_latest_checkpoint(Path(folder)))
    cost = statistics.median(costs)
    print(f"{size / 1e9:.2f} GB on {device}; checked and read in {read:.1f} s")
    print(f"a save costs {cost:.2f} s: {cost / 60:.1%} of training at one a minute")


def train(model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, device: str) -> Iterator[None]:
    """Endless updates on random tokens."""
    tokens = torch.randint(50_000, (8, 64), device=device)
    while True:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        yield


def window(updates: Iterator[None], seconds: float) -> list[float]:
    """Seconds of each update during `seconds` of training."""
    took: list[float] = []
    while sum(took) < seconds:
        took.append(clock(lambda: next(updates)))
    return took


def clock(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
