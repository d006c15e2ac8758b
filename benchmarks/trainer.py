"""Training, compared with Trainer of transformers as used by its run_glue example."""

from functools import partial

from benchmarks import gptft, peers
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, main


def _gptft(scale: Scale, **options: object) -> Measurement:
    return gptft.train_rte(scale, updates=scale.choose(1, 3), **options)


def _peer(scale: Scale, **options: object) -> Measurement:
    return peers.train_rte(scale, updates=scale.choose(1, 3), **options)


CONTESTANTS: dict[str, Contestant] = {
    "Trainer, pad to 128, fp32": _peer,
    "Trainer, dynamic padding, fp32": partial(_peer, padded=False),
    "gptft, fp32": _gptft,
    "Trainer, pad to 128, bf16": partial(_peer, bf16=True),
    "gptft, bf16": partial(_gptft, precision="bf16"),
}

BENCHMARK = Benchmark(
    "trainer",
    "RTE, gpt2-small",
    "example",
    CONTESTANTS,
    (
        Claim("gptft, fp32", "Trainer, pad to 128, fp32", 3.0, 0.5),
        Claim("gptft, fp32", "Trainer, dynamic padding, fp32", 3.0, 0.5),
        Claim("gptft, bf16", "Trainer, pad to 128, bf16", 2.3, 0.5),
        Claim("gptft, bf16", "Trainer, pad to 128, fp32", 7, 0.5),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
