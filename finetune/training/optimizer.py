"""The optimizers and the learning-rate schedules."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Adafactor, AdamW, Optimizer

from finetune.models.quantization import require_bitsandbytes
from finetune.recipe.schema import CommonTrainConfig, OptimizerName, Schedule
from task_formats import UsageError

_UNFUSED = ("adafactor", "adamw_8bit")
"""Optimizers that cannot skip a step by themselves, and cannot be sharded."""


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    config: CommonTrainConfig,
    rate_factors: Mapping[nn.Parameter, float] = {},
) -> Optimizer:
    """Builds the optimizer of the recipe over all trainable parameters.

    It is PyTorch's fused AdamW or its Adafactor, or bitsandbytes' AdamW with moments in 8 bits
    (Dettmers et al. 2021, "8-bit Optimizers via Block-wise Quantization").

    Only tensors with more than one dimension decay: matrices and embeddings, but no biases and
    gains (GPT-1, section 4.1, and the original code).

    Args:
        parameters: The model's parameters.
        config: Optimizer, learning rate, decay, betas and epsilon.
        rate_factors: Parameters whose learning rate is multiplied by a factor.

    Raises:
        UsageError: The optimizer does not fit sharded weights, or bitsandbytes is not installed.
    """
    split: dict[tuple[float, float], list[nn.Parameter]] = {}
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in sorted(trained, key=lambda parameter: parameter.dim() <= 1):
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        split.setdefault((decay, rate_factors.get(parameter, 1.0)), []).append(parameter)
    groups = [
        {"params": params, "weight_decay": decay, "decay": decay, "rate_factor": factor}
        for (decay, factor), params in split.items()
    ]
    name = config.optimizer
    if name in _UNFUSED and any(isinstance(parameter, DTensor) for parameter in trained):
        what, cure = f"{name} cannot train sharded weights (FSDP)", "Use adamw or adam."
        raise UsageError(what, where="train.optimizer", cure=cure)
    if name == "adafactor":
        return Adafactor(groups, lr=config.learning_rate)
    rate, betas, epsilon = config.learning_rate, config.betas, config.epsilon
    if name == "adamw_8bit":
        require_bitsandbytes("train.optimizer")
        from bitsandbytes.optim.adamw import AdamW8bit

        return cast(Optimizer, AdamW8bit(groups, lr=rate, betas=betas, eps=epsilon))
    return AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)


def take_step(
    optimizer: Optimizer,
    name: OptimizerName,
    update: int,
    learning_rate: float,
    epsilon: float,
    nonfinite: Tensor,
) -> None:
    """Makes the step of update 1, 2, ...; where `nonfinite` is 1 the weights stay as they are."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_factor"]
    if name in _UNFUSED:
        if not nonfinite:  # Waits for the device.
            optimizer.step()
        return
    if name == "adam":
        set_adam_step(optimizer, update, epsilon)
    # Fused AdamW skips the step where found_inf is 1, without a device synchronization.
    optimizer.found_inf = nonfinite  # type: ignore[attr-defined]
    optimizer.step()


def set_adam_step(optimizer: Optimizer, update: int, epsilon: float) -> None:
    """Makes AdamW take the step of the original code's Adam at update 1, 2, ...

    The original adds epsilon outside the bias correction and decays inside the corrected step:
    p −= r·√c₂/c₁ · (m/(√v + ε) + decay·p), cᵢ = 1 − βᵢᵗ. AdamW computes
    p −= r/c₁ · m/(√v/√c₂ + ε′) + r·decay′·p, which is the same for ε′ = ε/√c₂ and
    decay′ = decay·√c₂/c₁.
    """
    for group in optimizer.param_groups:
        first, second = (1 - beta**update for beta in group["betas"])
        group["eps"] = epsilon / math.sqrt(second)
        group["weight_decay"] = group["decay"] * math.sqrt(second) / first


def learning_rate_factor(
    update: int, updates: int, warmup: float, schedule: Schedule = "linear"
) -> float:
    """Returns what the peak learning rate is multiplied by at update t = 1, 2, ..., T.

    After W updates of warm-up (t / (W + 1)) the factor is 1 ("constant"), or it falls from 1 at
    t = W + 1 in equal steps ("linear") or along half a cosine ("cosine"); it would reach 0 at
    t = T + 1. "gpt1" is the original code's: with x = t / T, (x / warmup if x <= warmup else 1) ·
    (1 − x), which is 0 at the last update.

    Args:
        update: t.
        updates: T.
        warmup: W; or below 1, the fraction W / T.
        schedule: The shape of the curve.

    >>> [round(learning_rate_factor(t, 4, warmup=0), 9) for t in (1, 2, 3, 4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    if schedule == "gpt1":
        x, warmup = update / updates, warmup if warmup < 1 else warmup / updates
        return (x / warmup if x <= warmup else 1.0) * (1 - x)
    warmup_updates = min(round(warmup * updates) if warmup < 1 else int(warmup), updates - 1)
    if update <= warmup_updates:
        return update / (warmup_updates + 1)
    fallen = (update - warmup_updates - 1) / (updates - warmup_updates)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * fallen)) / 2
    return 1 - fallen if schedule == "linear" else 1.0


def pretraining_factor(update: int, updates: int, warmup: float) -> float:
    """Returns the factor of GPT-1's pre-training (section 4.1) at update t = 1, 2, ..., T.

    It climbs for the fraction `warmup` of all updates, then follows half a cosine to 0 at T.
    """
    x = update / updates
    return x / warmup if x <= warmup else (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def stable_decay_factor(update: int, warmup_updates: int, stable_end: int, updates: int) -> float:
    """Returns the factor of the warm-up, stable, decay schedule at update t = 1, 2, ..., T.

    It climbs to 1 in W updates (t / W), stays 1 up to update S, and falls in equal steps; it would
    reach 0 at T + 1. Up to S it does not depend on T (Hu et al. 2024, MiniCPM, section 4).

    Args:
        update: t.
        warmup_updates: W.
        stable_end: S.
        updates: T.

    >>> [stable_decay_factor(t, 2, 3, 5) for t in (1, 2, 3)]
    [0.5, 1.0, 1.0]
    """
    if update <= stable_end:
        return min(1.0, update / max(warmup_updates, 1))
    return (updates + 1 - update) / (updates + 1 - stable_end)


def build_schedule(
    peak: float, updates: int, warmup: float, schedule: Schedule = "linear"
) -> Callable[[int], float]:
    """Returns the learning rate as a function of the update 1, 2, ..."""
    return lambda update: peak * learning_rate_factor(update, updates, warmup, schedule)
