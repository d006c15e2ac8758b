"""Training a tiny base, 4 layers of width 256, where the overhead of Python shows."""

from functools import partial

from benchmarks import gptft, peers
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, main


def _gptft(scale: Scale, *, updates: int = 30, **options: object) -> Measurement:
    return gptft.train_rte(scale, shape="tiny", updates=scale.choose(5, updates), **options)


def _peer(scale: Scale, *, updates: int = 30, **options: object) -> Measurement:
    return peers.train_rte(scale, shape="tiny", updates=scale.choose(5, updates), **options)


CONTESTANTS: dict[str, Contestant] = {
    "Trainer, pad to 128, fp32": _peer,
    "gptft, fp32": _gptft,
    "full logits, pad to 128, fp32": partial(_peer, updates=8, naive_lm=True),
    "gptft with LM loss, fp32": partial(_gptft, updates=8, lm_coefficient=0.5),
}

BENCHMARK = Benchmark(
    "tiny",
    "RTE, 4 layers of 256",
    "example",
    CONTESTANTS,
    (
        Claim("gptft, fp32", "Trainer, pad to 128, fp32", 3.3),
        Claim("gptft with LM loss, fp32", "full logits, pad to 128, fp32", 3),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
