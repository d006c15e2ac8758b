"""Linear cost: time per example with 1, 4 and 16 times the rows."""

from functools import partial

from benchmarks import gptft
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, main


def _train(scale: Scale, *, times: int) -> Measurement:
    updates = times * scale.choose(1, 24)
    return gptft.train_rte(scale, shape="tiny", updates=updates, repeated=True)


CONTESTANTS: dict[str, Contestant] = {
    f"{times} × the rows": partial(_train, times=times) for times in (1, 4, 16)
}

BENCHMARK = Benchmark(
    "growth",
    "RTE, 4 layers of 256, fp32",
    "example",
    CONTESTANTS,
    (
        Claim("4 × the rows", "1 × the rows", 0.9),
        Claim("16 × the rows", "1 × the rows", 0.9),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
