"""Training with the LM loss, compared with a direct implementation that holds all logits."""

from functools import partial

from benchmarks import gptft, peers
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, main


def _gptft(scale: Scale, **options: object) -> Measurement:
    return gptft.train_rte(scale, updates=scale.choose(1, 2), lm_coefficient=0.5, **options)


def _peer(scale: Scale, **options: object) -> Measurement:
    return peers.train_rte(scale, updates=scale.choose(1, 2), naive_lm=True, **options)


CONTESTANTS: dict[str, Contestant] = {
    "full logits, pad to 128, fp32": _peer,
    "gptft, fp32": _gptft,
    "full logits, pad to 128, bf16": partial(_peer, bf16=True),
    "gptft, bf16": partial(_gptft, precision="bf16"),
}

BENCHMARK = Benchmark(
    "language_loss",
    "RTE with task + 0.5 · LM, gpt2-small",
    "example",
    CONTESTANTS,
    (
        Claim("gptft, fp32", "full logits, pad to 128, fp32", 3.3, 0.5),
        Claim("gptft, bf16", "full logits, pad to 128, bf16", 3.8, 0.5),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
