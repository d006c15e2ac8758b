"""Runs contestants alternately in fresh processes; reports medians, ratios and memory."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Scale(NamedTuple):
    """How large a benchmark is, and where its inputs are."""

    quick: bool
    """Takes a few minutes, to check that everything runs; its numbers mean little."""
    material: Path
    """Folder of random bases and generated rows, shared by all processes."""
    data: Path
    """Folder with `glue`, `race` and `lm`."""
    threads: int
    """Threads per contestant. Use one on a shared machine: two threads wait for each other whenever
    one of them is preempted."""

    def choose(self, few: int, many: int) -> int:
        """The smaller number if the benchmark is quick."""
        return few if self.quick else many


class Measurement(NamedTuple):
    """What one process measured: units of work, wall and CPU seconds, and peak memory in MiB."""

    units: float
    seconds: float
    cpu: float
    peak: float
    facts: dict[str, float]

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


Contestant = Callable[[Scale], Measurement]


class Claim(NamedTuple):
    """A goal: one contestant is `least` times as fast as another, with `memory` of its memory."""

    ours: str
    peer: str
    least: float
    memory: float | None = None


class Benchmark(NamedTuple):
    """Contestants by name, and the claims about them."""

    name: str
    title: str
    unit: str
    contestants: dict[str, Contestant]
    claims: tuple[Claim, ...] = ()
    rounds: int = 3


def clock(steps: Iterable[float], warm: int = 1) -> Measurement:
    """Measures work whose steps yield their units; the first `warm` steps are not timed.

    The clock stops with the last step, so work after it is not counted.
    """
    steps = iter(steps)
    for _ in islice(steps, warm):
        pass
    units = 0.0
    began = ended = _now()
    for done in steps:
        units, ended = units + done, _now()
    return Measurement(units, ended[0] - began[0], ended[1] - began[1], peak(), {})


def _now() -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def peak() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Results = dict[str, list[Measurement]]
"""Measurements of every contestant, one per round."""


def compete(benchmark: Benchmark, scale: Scale, rounds: int) -> Results:
    """Runs all contestants alternately in fresh processes; every second round in reverse."""
    results: Results = {name: [] for name in benchmark.contestants}
    for n in range(rounds):
        for name in sorted(results, key=list(results).index, reverse=bool(n % 2)):
            results[name].append(_measure(benchmark, name, scale))
            print(f"  {name}: {results[name][-1].rate:.4g} {benchmark.unit}/s", file=sys.stderr)
    return results


def _measure(benchmark: Benchmark, name: str, scale: Scale) -> Measurement:
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", "--contestant", name]
    command += ["--material", str(scale.material), "--data", str(scale.data)]
    command += ["--quick"] if scale.quick else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(scale.threads)}
    environment["GPTFT_CACHE"] = str(scale.material / "cache")
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def render(benchmark: Benchmark, results: Results) -> str:
    """Two Markdown tables: medians of every contestant, and the claims."""
    unit = benchmark.unit
    lines = [
        f"| {benchmark.title} | {unit}/s | CPU s per {unit} | peak MiB | rounds |",
        "|---|---|---|---|---|",
    ]
    for name, measured in results.items():
        rates = sorted(one.rate for one in measured)
        spread = f"{rates[0]:.3g} to {rates[-1]:.3g}" if len(rates) > 1 else "1"
        cpu = statistics.median(one.cpu / one.units for one in measured)
        memory = statistics.median(one.peak for one in measured)
        rate = statistics.median(rates)
        lines.append(f"| {name} | {rate:.3g} | {cpu:.3g} | {memory:,.0f} | {spread} |")
    return "\n".join([*lines, "", *_render_claims(benchmark, results)])


def _render_claims(benchmark: Benchmark, results: Results) -> Iterator[str]:
    if benchmark.claims:
        yield "| ratio | of medians | by rounds | CPU time | peak memory | goal |"
        yield "|---|---|---|---|---|---|"
    for claim in benchmark.claims:
        ours, peer = results[claim.ours], results[claim.peer]
        speed = _ratio(ours, peer, lambda one: one.rate)
        each = sorted(a.rate / b.rate for a, b in zip(ours, peer, strict=True))
        cpu = _ratio(peer, ours, lambda one: one.cpu / one.units)
        memory = _ratio(ours, peer, lambda one: one.peak)
        goal = f"{claim.least} ×" + (f", {claim.memory} of memory" if claim.memory else "")
        spread = f"{each[0]:.2f} to {each[-1]:.2f}"
        yield (
            f"| {claim.ours} : {claim.peer} | **{speed:.2f} ×** | {spread} | {cpu:.2f} × "
            f"| {memory:.2f} | {goal} |"
        )


def _ratio(
    one: list[Measurement], other: list[Measurement], value: Callable[[Measurement], float]
) -> float:
    return statistics.median(map(value, one)) / statistics.median(map(value, other))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that all benchmarks share."""
    parser.add_argument("--quick", action="store_true", help="small, to check that it runs")
    parser.add_argument("--rounds", type=int, help="rounds per contestant")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads per contestant"
    )
    kept = Path(tempfile.gettempdir()) / "gptft-benchmarks"
    parser.add_argument("--material", type=Path, default=kept, help="folder of generated bases")


def scale_of(options: argparse.Namespace) -> Scale:
    """The scale given by the options."""
    return Scale(options.quick, options.material, options.data, options.threads)


def main(benchmark: Benchmark) -> None:
    """Runs a benchmark and prints its tables; with --contestant, measures only that one."""
    parser = argparse.ArgumentParser(description=benchmark.title)
    add_options(parser)
    parser.add_argument("--contestant", choices=benchmark.contestants, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = scale_of(options)
    if options.contestant:
        print(json.dumps(benchmark.contestants[options.contestant](scale)._asdict()))
        return
    rounds = options.rounds or (1 if options.quick else benchmark.rounds)
    print(render(benchmark, compete(benchmark, scale, rounds)))
