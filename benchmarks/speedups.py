"""What each speed-up is worth: training with all of them, and with each one off.

Run: python -m benchmarks.speedups [--tiny] [--rounds 5]
"""

import argparse
import json
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

from benchmarks import gptft
from benchmarks.harness import (
    Benchmark,
    Claim,
    Contestant,
    Measurement,
    Scale,
    add_options,
    compete,
    render,
    scale_of,
)
from finetune.models import pretrained
from finetune.models.speedups.optimize import ALL, optimize_decoder

LEAST = 1.03
"""A speed-up is kept if it makes updates this much faster, for gpt2-small or the tiny shape."""
UPDATES = {"small": 4, "tiny": 30}


class Variant(NamedTuple):
    """One speed-up that is switched off."""

    without: str | None

    @property
    def name(self) -> str:
        """For the table."""
        return f"without {self.without}" if self.without else "all speed-ups"


VARIANTS = [
    Variant(None),
    *(Variant(name) for name in asdict(ALL)),
]


def train(scale: Scale, shape: str, variant: Variant) -> Measurement:
    """Updates of 32 RTE pairs in fp32, one speed-up switched off in this process."""
    if variant.without in asdict(ALL):
        speedups = replace(ALL, **{variant.without: False})
        pretrained.optimize_decoder = partial(optimize_decoder, speedups=speedups)
    return gptft.train_rte(
        scale,
        shape=shape,
        updates=scale.choose(1, UPDATES[shape]),
    )


def benchmark_of(shape: str) -> Benchmark:
    """All variants of a shape; each is compared with all speed-ups."""
    contestants: dict[str, Contestant] = {
        f"{shape}: {variant.name}": partial(train, shape=shape, variant=variant)
        for variant in VARIANTS
    }
    claims = [
        Claim(f"{shape}: {variant._replace(without=None).name}", f"{shape}: {variant.name}", LEAST)
        for variant in VARIANTS
        if variant.without
    ]
    title = f"RTE, {shape}, fp32"
    return Benchmark("speedups", title, "example", contestants, tuple(claims))


def main() -> None:
    """Compares the variants; with --contestant, measures only that one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--tiny", action="store_true", help="4 layers of 256, not gpt2-small")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    scale = scale_of(options)
    if options.contestant:
        shape = options.contestant.split(":")[0]
        contestant = benchmark_of(shape).contestants[options.contestant]
        print(json.dumps(contestant(scale)._asdict()))
        return
    benchmark = benchmark_of("tiny" if options.tiny else "small")
    rounds = options.rounds or (1 if options.quick else benchmark.rounds)
    print(render(benchmark, compete(benchmark, scale, rounds)))


if __name__ == "__main__":
    main()
