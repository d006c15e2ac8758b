"""Model FLOPs of training against the machine's own rate at the same matrix products.

The floor multiplies matrices of the shapes of gpt2-small's dense layers, forward, backward and for
the weights, with 2,048 tokens, and nothing else. Ours are whole updates, of which only the dense
layers' arithmetic (and with the LM loss the output layer's, at real targets) is counted.
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import ours
from benchmarks.contest import Claim, Contest, Found, Play, Scale, clock, main

LAYERS, WIDTH, VOCABULARY, TOKENS = 12, 768, 50_261, 2048
DENSE = (*((WIDTH, part * WIDTH) for part in (3, 1, 4)), (4 * WIDTH, WIDTH))


def _floor(scale: Scale, *, dtype: torch.dtype = torch.float32) -> Found:
    layers = [_operands(*shape, dtype) for shape in DENSE]

    def steps() -> Iterator[float]:
        for _ in range(scale.choose(4, 20) + 1):
            for inputs, weight, slopes in layers:
                torch.mm(inputs, weight)
                torch.mm(slopes, weight.t())
                torch.mm(inputs.t(), slopes)
            yield sum(6 * TOKENS * rows * columns for rows, columns in DENSE) / 1e9

    return clock(steps())


def _operands(rows: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    shapes = ((TOKENS, rows), (rows, columns), (TOKENS, columns))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def _ours(scale: Scale, **options: object) -> Found:
    found = ours.train_rte(scale, updates=scale.choose(1, 3), **options)
    tokens, pairs = found.facts["tokens"], found.units
    block = 6 * sum(rows * columns for rows, columns in DENSE)
    if options.get("lm_coefficient"):
        # Every token of a pair but its first is a target.
        work = LAYERS * block * tokens + 6 * WIDTH * VOCABULARY * (tokens - pairs)
    else:
        # Of the last block, queries, keys and values of all tokens, and all else of a pair's last.
        work = ((LAYERS - 1) * block + 6 * 3 * WIDTH**2) * tokens + block * pairs
    return found._replace(units=work / 1e9)


PLAYS: dict[str, Play] = {
    "matrix products alone, fp32": _floor,
    "gptft, fp32": _ours,
    "gptft with LM loss, fp32": partial(_ours, lm_coefficient=0.5),
    "matrix products alone, bf16": partial(_floor, dtype=torch.bfloat16),
    "gptft, bf16": partial(_ours, precision="bf16"),
    "gptft with LM loss, bf16": partial(_ours, precision="bf16", lm_coefficient=0.5),
}

CONTEST = Contest(
    "products",
    "RTE, gpt2-small",
    "GFLOP",
    PLAYS,
    (
        Claim("gptft, fp32", "matrix products alone, fp32", 0.7),
        Claim("gptft with LM loss, fp32", "matrix products alone, fp32", 0.7),
        Claim("gptft, bf16", "matrix products alone, bf16", 0),
        Claim("gptft with LM loss, bf16", "matrix products alone, bf16", 0),
    ),
)

if __name__ == "__main__":
    main(CONTEST)
