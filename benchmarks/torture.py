"""Kills a run again and again, and holds what it comes to against an undisturbed one.

Each run has dropout, evaluates twice an epoch and saves a whole state after every update. SIGKILL
comes at any time, and amid saves; then SIGTERM, which must leave a whole state behind each time.
Whatever happened, the run goes on by itself and must end in the very same bits.

    python benchmarks/torture.py --kills 200 --terminations 50
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
from tests.support import families, jobs, torture

UPDATES = 6


def main() -> None:
    """Tortures, and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terminations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptft-torture-") as name:
        root = Path(name)
        os.environ["GPTFT_CACHE"] = str(root / "cache")
        recipe = prepare(root)
        began = time.monotonic()
        jobs.train(recipe, root / "undisturbed")
        seconds = 1.5 * (time.monotonic() - began)
        draw = random.Random(said.seed)
        for number, most in ((signal.SIGKILL, said.kills), (signal.SIGTERM, said.terminations)):
            count, runs = afflict(recipe, root, number, most, draw, seconds)
            told = ", ".join(f"{kind} {times}" for kind, times in sorted(count.items()))
            print(f"{number.name}: {count.total()} ({told}); {runs} runs, all bit-equal")


def prepare(root: Path) -> Recipe:
    """A small job over a base with random weights."""
    base = families.make("gpt2", root / "base")
    noisy = {"head_dropout": 0.1, "base_part": {"dropout": 0.1}, "evaluations": 2}
    return jobs.recipe("multiple_choice", base, root / "data", checkpoint_updates=1, **noisy)


def afflict(
    recipe: Recipe,
    root: Path,
    number: signal.Signals,
    most: int,
    draw: random.Random,
    seconds: float,
) -> tuple[Counter[str], int]:
    """Starts run after run until `most` signals have come: how many by kind, and the runs."""
    count: Counter[str] = Counter()
    runs = 0
    while count.total() < most:
        run = root / f"{number.name}-{runs}"
        moment = torture.draw_moment(draw, UPDATES, seconds)
        while code := torture.strike(recipe, run, moment, number):
            check(run, number, code)
            # Until its data is ready, SIGTERM simply ends a run: there is nothing to save.
            count[moment.kind] += 0 if code in torture.NOT_BEGUN else 1
            moment = torture.draw_moment(draw, UPDATES, seconds)
        jobs.assert_same(run, root / "undisturbed")
        runs += 1
    return count, runs


def check(run: Path, number: signal.Signals, code: int) -> None:
    """After a kill there is a whole state or none; after SIGTERM the newest one is whole."""
    state, warnings = checkpoint.latest(run / "checkpoints")
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL, code
        # Half-written states are told and passed over; those before them are whole.
        assert all("half written" in warning for warning in warnings), warnings
    elif code not in torture.NOT_BEGUN:
        assert code == 128 + signal.SIGTERM, code
        assert state is not None
        assert not warnings, warnings


if __name__ == "__main__":
    main()
