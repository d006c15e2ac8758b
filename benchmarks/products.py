"""Model FLOPs of training, compared with the machine's own rate for the same matrix products.

The baseline only multiplies matrices with the shapes of gpt2-small's dense layers, for the forward
pass, the inputs and the weights, with 2,048 tokens. gptft makes whole updates, of which only the
arithmetic of the dense layers (and with the LM loss of the output layer at real targets) counts.
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import gptft
from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main

LAYERS, WIDTH, VOCABULARY, TOKENS = 12, 768, 50_261, 2048
DENSE = (*((WIDTH, factor * WIDTH) for factor in (3, 1, 4)), (4 * WIDTH, WIDTH))


def _baseline(scale: Scale, *, dtype: torch.dtype = torch.float32) -> Measurement:
    layers = [_operands(*shape, dtype) for shape in DENSE]

    def steps() -> Iterator[float]:
        for _ in range(scale.choose(4, 20) + 1):
            for inputs, weight, gradients in layers:
                torch.mm(inputs, weight)
                torch.mm(gradients, weight.t())
                torch.mm(inputs.t(), gradients)
            yield sum(6 * TOKENS * rows * columns for rows, columns in DENSE) / 1e9

    return clock(steps())


def _operands(rows: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    shapes = ((TOKENS, rows), (rows, columns), (TOKENS, columns))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def _gptft(scale: Scale, **options: object) -> Measurement:
    measurement = gptft.train_rte(scale, updates=scale.choose(1, 3), **options)
    tokens, pairs = measurement.facts["tokens"], measurement.units
    block = 6 * sum(rows * columns for rows, columns in DENSE)
    if options.get("lm_coefficient"):
        # Every token of a pair but its first is a target.
        work = LAYERS * block * tokens + 6 * WIDTH * VOCABULARY * (tokens - pairs)
    else:
        # The last block computes keys, queries, values of all tokens, and the rest for one.
        work = ((LAYERS - 1) * block + 6 * 3 * WIDTH**2) * tokens + block * pairs
    return measurement._replace(units=work / 1e9)


CONTESTANTS: dict[str, Contestant] = {
    "matrix products alone, fp32": _baseline,
    "gptft, fp32": _gptft,
    "gptft with LM loss, fp32": partial(_gptft, lm_coefficient=0.5),
    "matrix products alone, bf16": partial(_baseline, dtype=torch.bfloat16),
    "gptft, bf16": partial(_gptft, precision="bf16"),
    "gptft with LM loss, bf16": partial(_gptft, precision="bf16", lm_coefficient=0.5),
}

BENCHMARK = Benchmark(
    "products",
    "RTE, gpt2-small",
    "GFLOP",
    CONTESTANTS,
    (
        Claim("gptft, fp32", "matrix products alone, fp32", 0.7),
        Claim("gptft with LM loss, fp32", "matrix products alone, fp32", 0.7),
        Claim("gptft, bf16", "matrix products alone, bf16", 0),
        Claim("gptft with LM loss, bf16", "matrix products alone, bf16", 0),
    ),
)

if __name__ == "__main__":
    main(BENCHMARK)
