"""Interrupts runs again and again and compares their results with an uninterrupted run.

Each run has dropout, evaluates twice per epoch and saves a checkpoint after every update. SIGKILL
is sent at random times and during saves; then SIGTERM, which must leave a valid checkpoint. Each
run is resumed until it is finished, and must end bit-identically.

    python benchmarks/interruptions.py --kills 200 --terminations 50
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# Before torch: many small processes share this machine.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finetune.checkpointing import checkpoint
from finetune.recipe.schema import Recipe
from tests.support import families, interruptions, jobs

UPDATES = 6


def main() -> None:
    """Interrupts runs and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terminations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptft-interruptions-") as name:
        root = Path(name)
        os.environ["GPTFT_CACHE"] = str(root / "cache")
        recipe = prepare(root)
        start = time.monotonic()
        jobs.train(recipe, root / "uninterrupted")
        seconds = 1.5 * (time.monotonic() - start)
        draw = random.Random(options.seed)
        for number, most in (
            (signal.SIGKILL, options.kills),
            (signal.SIGTERM, options.terminations),
        ):
            count, runs = interrupt(recipe, root, number, most, draw, seconds)
            kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(count.items()))
            print(f"{number.name}: {count.total()} ({kinds}); {runs} runs, all bit-equal")


def prepare(root: Path) -> Recipe:
    """A small job over a base with random weights."""
    base = families.make("gpt2", root / "base")
    noisy = {"head_dropout": 0.1, "base_part": {"dropout": 0.1}, "evaluations": 2}
    return jobs.recipe("multiple_choice", base, root / "data", checkpoint_updates=1, **noisy)


def interrupt(
    recipe: Recipe,
    root: Path,
    number: signal.Signals,
    most: int,
    draw: random.Random,
    seconds: float,
) -> tuple[Counter[str], int]:
    """Starts runs until `most` signals were sent; returns signals by kind, and runs."""
    count: Counter[str] = Counter()
    runs = 0
    while count.total() < most:
        run = root / f"{number.name}-{runs}"
        moment = interruptions.draw_moment(draw, UPDATES, seconds)
        while code := interruptions.run_interrupted(recipe, run, moment, number):
            check(run, number, code)
            # Before the data is prepared SIGTERM ends a run without a checkpoint.
            count[moment.kind] += 0 if code in interruptions.NOT_STARTED else 1
            moment = interruptions.draw_moment(draw, UPDATES, seconds)
        jobs.assert_same(run, root / "uninterrupted")
        runs += 1
    return count, runs


def check(run: Path, number: signal.Signals, code: int) -> None:
    """After SIGKILL every complete checkpoint is valid; after SIGTERM the latest one is."""
    state, warnings = checkpoint.load_latest_checkpoint(run / "checkpoints")
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL, code
        # Incomplete checkpoints are reported and skipped.
        assert all("half written" in warning for warning in warnings), warnings
    elif code not in interruptions.NOT_STARTED:
        assert code == 128 + signal.SIGTERM, code
        assert state is not None
        assert not warnings, warnings


if __name__ == "__main__":
    main()
