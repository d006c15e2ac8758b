"""How threads of torch wait for each other: spinning, sleeping, or as the command gptft sets it.

Trains in turns with each setting, in a process of its own, on a machine as it is and, with --busy,
beside processes that keep cores busy. The first setting is OpenMP's default.

    python -m benchmarks.waiting --base tiny --rounds 5 --threads 2 --busy 0 2
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune.cli import WAITING

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "spin": {},
    "sleep": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "gptft": WAITING,
}
WARM_UP = 2
"""Updates before the clock starts."""


def main() -> None:
    """Prints tokens per second of each setting, for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--busy", type=int, nargs="+", default=[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.base, options.updates))
        return
    for busy in options.busy:
        found = {name: list[float]() for name in SETTINGS}
        with busy_processes(busy):
            for _ in range(options.rounds):
                for name, variables in SETTINGS.items():
                    found[name].append(run(options, variables))
        print(
            f"{options.base}, {options.threads} threads, {busy} busy processes, load "
            f"{os.getloadavg()[0]:.1f}"
        )
        for name, rates in found.items():
            ratio = statistics.median(b / a for a, b in zip(found["spin"], rates, strict=True))
            print(
                f"  {name}: {statistics.median(rates):.0f} tokens/s ({min(rates):.0f} to "
                f"{max(rates):.0f}), {ratio:.2f} of spin",
                flush=True,
            )


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that each keep a core busy."""
    loop = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(loop) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(options: argparse.Namespace, variables: dict[str, str]) -> float:
    """Tokens per second of one training in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in WAITING}
    words = ["--measure", "--base", options.base, "--updates", str(options.updates)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.waiting", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=kept | variables | {"OMP_NUM_THREADS": str(options.threads)},
        check=True,
    )
    return float(done.stdout.split()[-1])


def measure(base: str, updates: int) -> float:
    """Trains on the demo and returns tokens per second after the first updates."""
    import finetune
    from finetune.training.loop import Step

    settings = {"base.path": base, "train.epochs": 1, "train.batch_size": 8}
    recipe = finetune.load_recipe("demo", settings | {"data.limit": 8 * updates})
    with TemporaryDirectory(prefix="gptft-waiting-") as folder:
        steps = [
            event
            for event in finetune.events(recipe, Path(folder, "run"), device="cpu")
            if isinstance(event, Step)
        ]
    timed = steps[WARM_UP:]
    return sum(step.tokens for step in timed) / sum(step.seconds for step in timed)


if __name__ == "__main__":
    main()
