"""What every benchmark does: contestants in fresh processes by turns, medians, ratios, memory."""

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
    """How large a contest is, and where its material lies."""

    quick: bool
    """A few minutes in all, to see that everything runs; its numbers mean little."""
    material: Path
    """Where drawn bases and written rows are kept between processes."""
    data: Path
    """The folder with `glue`, `race` and `lm`."""
    threads: int
    """Of every contestant. On a machine shared with others, one is the most that can be trusted:
    two wait for each other whenever one of them has to wait for somebody else."""

    def choose(self, few: int, many: int) -> int:
        """The smaller number where it is to be quick."""
        return few if self.quick else many


class Found(NamedTuple):
    """What one process measured: so many units of work, seconds, and MiB at the peak."""

    units: float
    seconds: float
    cpu: float
    peak: float
    facts: dict[str, float]

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds


Play = Callable[[Scale], Found]


class Claim(NamedTuple):
    """That one contestant is so many times as fast as another, with so much of its memory."""

    ours: str
    peer: str
    least: float
    memory: float | None = None


class Contest(NamedTuple):
    """A claim's contestants by name, and what is claimed of them."""

    name: str
    title: str
    unit: str
    contestants: dict[str, Play]
    claims: tuple[Claim, ...] = ()
    rounds: int = 3


def clock(steps: Iterable[float], warm: int = 1) -> Found:
    """Time and memory of work done step by step, each giving its units; the first are not timed.

    The clock stops with the last step: what is done once at the end of all counts for nobody.
    """
    steps = iter(steps)
    for _ in islice(steps, warm):
        pass
    units = 0.0
    began = ended = _now()
    for done in steps:
        units, ended = units + done, _now()
    return Found(units, ended[0] - began[0], ended[1] - began[1], peak(), {})


def _now() -> tuple[float, float]:
    """Seconds that have passed, and seconds of this process on processors."""
    return time.perf_counter(), time.process_time()


def peak() -> float:
    """MiB that this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Results = dict[str, list[Found]]
"""What every round of every contestant found."""


def compete(contest: Contest, scale: Scale, rounds: int) -> Results:
    """All contestants, each in a fresh process, by turns and every second round backwards."""
    found: Results = {name: [] for name in contest.contestants}
    for n in range(rounds):
        for name in sorted(found, key=list(found).index, reverse=bool(n % 2)):
            found[name].append(_play(contest, name, scale))
            print(f"  {name}: {found[name][-1].rate:.4g} {contest.unit}/s", file=sys.stderr)
    return found


def _play(contest: Contest, name: str, scale: Scale) -> Found:
    command = [sys.executable, "-m", f"benchmarks.{contest.name}", "--play", name]
    command += ["--material", str(scale.material), "--data", str(scale.data)]
    command += ["--quick"] if scale.quick else []
    around = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(scale.threads)}
    around["GPTFT_CACHE"] = str(scale.material / "cache")
    done = subprocess.run(
        command, check=False, cwd=ROOT, env=around, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def render(contest: Contest, results: Results) -> str:
    """Two tables in Markdown: medians of every contestant, and what became of the claims."""
    lines = [
        f"| {contest.title} | {contest.unit}/s | CPU s per {contest.unit} | peak MiB | rounds |",
        "|---|---|---|---|---|",
    ]
    for name, found in results.items():
        rates = sorted(one.rate for one in found)
        spread = f"{rates[0]:.3g} to {rates[-1]:.3g}" if len(rates) > 1 else "1"
        cpu = statistics.median(one.cpu / one.units for one in found)
        memory = statistics.median(one.peak for one in found)
        rate = statistics.median(rates)
        lines.append(f"| {name} | {rate:.3g} | {cpu:.3g} | {memory:,.0f} | {spread} |")
    return "\n".join([*lines, "", *_verdicts(contest, results)])


def _verdicts(contest: Contest, results: Results) -> Iterator[str]:
    if contest.claims:
        yield "| ratio | of medians | by rounds | CPU time | peak memory | asked for |"
        yield "|---|---|---|---|---|---|"
    for claim in contest.claims:
        ours, peer = results[claim.ours], results[claim.peer]
        speed = _ratio(ours, peer, lambda one: one.rate)
        each = sorted(a.rate / b.rate for a, b in zip(ours, peer, strict=True))
        cpu = _ratio(peer, ours, lambda one: one.cpu / one.units)
        memory = _ratio(ours, peer, lambda one: one.peak)
        wish = f"{claim.least} ×" + (f", {claim.memory} of memory" if claim.memory else "")
        spread = f"{each[0]:.2f} to {each[-1]:.2f}"
        yield (
            f"| {claim.ours} : {claim.peer} | **{speed:.2f} ×** | {spread} | {cpu:.2f} × "
            f"| {memory:.2f} | {wish} |"
        )


def _ratio(one: list[Found], other: list[Found], value: Callable[[Found], float]) -> float:
    return statistics.median(map(value, one)) / statistics.median(map(value, other))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark knows."""
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--rounds", type=int, help="fresh processes of every contestant")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of a contestant")
    kept = Path(tempfile.gettempdir()) / "gptft-benchmarks"
    parser.add_argument("--material", type=Path, default=kept, help="where bases are kept")


def scale_of(options: argparse.Namespace) -> Scale:
    """The scale that the options ask for."""
    return Scale(options.quick, options.material, options.data, options.threads)


def main(contest: Contest) -> None:
    """Run a contest and print its tables, or with --play one contestant and its numbers."""
    parser = argparse.ArgumentParser(description=contest.title)
    add_options(parser)
    parser.add_argument("--play", choices=contest.contestants, help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = scale_of(options)
    if options.play:
        print(json.dumps(contest.contestants[options.play](scale)._asdict()))
        return
    rounds = options.rounds or (1 if options.quick else contest.rounds)
    print(render(contest, compete(contest, scale, rounds)))
