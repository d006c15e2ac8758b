"""The LM loss alone, forward and backward: all logits, chunks of PyTorch, and gptft.

`linear_cross_entropy` of PyTorch has no weight per target, so all targets weigh the same here.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy

from benchmarks.harness import Benchmark, Claim, Contestant, Measurement, Scale, clock, main
from finetune.models.losses import lm_loss
from finetune.models.speedups.reused_memory import ReusedMemory

TARGETS, WIDTH, VOCABULARY = 2048, 768, 50_261
"""Of a forward pass of gpt2-small with four added tokens."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _measure(scale: Scale, *, loss: Loss, dtype: torch.dtype = torch.float32) -> Measurement:
    torch.manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH).mul_(0.02).requires_grad_()
    states = torch.randn(TARGETS, WIDTH).requires_grad_()
    target = torch.randint(0, VOCABULARY, (TARGETS,))

    def steps() -> Iterator[int]:
        for _ in range(scale.choose(2, 8)):
            weight.grad = states.grad = None
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                value = loss(states, weight, target)
            value.backward()
            yield TARGETS

    return clock(steps())


def _all_logits(states: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(linear(states, weight).float(), target)


def _torch(states: Tensor, weight: Tensor, target: Tensor, *, chunk: int | None) -> Tensor:
    # Autocast does not support linear_cross_entropy.
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        states, weight = states.to(dtype), weight.to(dtype)
    method = None if chunk else "auto"
    options = LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=method)
    return linear_cross_entropy(states, weight, target, options=options)


def _gptft(states: Tensor, weight: Tensor, target: Tensor, *, memory: ReusedMemory) -> Tensor:
    each = torch.full((TARGETS,), 1 / TARGETS)
    return lm_loss(states, weight, None, target, each, memory=memory)


LOSSES: dict[str, Loss] = {
    "all logits": _all_logits,
    "linear_cross_entropy": partial(_torch, chunk=None),
    "linear_cross_entropy, 1,024 a chunk": partial(_torch, chunk=1024),
    "gptft": partial(_gptft, memory=ReusedMemory()),
}
CONTESTANTS: dict[str, Contestant] = {
    f"{name}, {kind}": partial(_measure, loss=loss, dtype=dtype)
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    for name, loss in LOSSES.items()
}

BENCHMARK = Benchmark(
    "token_loss",
    "2,048 targets, width 768, vocabulary 50,261",
    "target",
    CONTESTANTS,
    tuple(
        Claim(f"gptft, {kind}", f"{peer}, {kind}", 1)
        for kind in ("fp32", "bf16")
        for peer in list(LOSSES)[:-1]
    ),
    rounds=2,
)

if __name__ == "__main__":
    main(BENCHMARK)
