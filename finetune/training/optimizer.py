"""The optimizer and the learning-rate schedule of GPT-1."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn
from torch.optim import AdamW

from finetune.recipe.schema import CommonTrainConfig

Decay = Literal["linear", "cosine"]


def build_optimizer(parameters: Iterable[nn.Parameter], config: CommonTrainConfig) -> AdamW:
    """Builds a fused AdamW over all trainable parameters.

    Only tensors with more than one dimension decay: matrices and embeddings, but no biases and
    gains (GPT-1, section 4.1, and the original code).
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True
    )


def set_adamw_step(optimizer: AdamW, update: int, learning_rate: float, epsilon: float) -> None:
    """Sets AdamW's hyperparameters for update 1, 2, ... so that it takes the original code's step.

    The original adds epsilon outside the bias correction and decays inside the corrected step:
    p −= r·√c₂/c₁ · (m/(√v + ε) + decay·p), cᵢ = 1 − βᵢᵗ. AdamW computes
    p −= r/c₁ · m/(√v/√c₂ + ε′) + r·decay′·p, which is the same for ε′ = ε/√c₂ and
    decay′ = decay·√c₂/c₁.
    """
    for group in optimizer.param_groups:
        first, second = (1 - beta**update for beta in group["betas"])
        group["lr"] = learning_rate
        group["eps"] = epsilon / math.sqrt(second)
        group["weight_decay"] = group["decay"] * math.sqrt(second) / first


def learning_rate_factor(
    update: int, updates: int, warmup: float, decay: Decay = "linear"
) -> float:
    """Returns what the peak learning rate is multiplied by at update t = 1, 2, ..., T.

    With x = t / T, "linear" is (x / warmup if x <= warmup else 1) · (1 − x), the original code's
    schedule for fine-tuning. "cosine" climbs to the peak and then follows half a cosine to 0
    (pre-training, GPT-1, section 4.1).

    >>> round(learning_rate_factor(5, 10, warmup=0.002), 9)
    0.5
    """
    x = update / updates
    climb = x / warmup if x <= warmup else 1.0
    if decay == "linear":
        return climb * (1 - x)
    return climb if x <= warmup else (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def build_schedule(
    peak: float, updates: int, warmup: float, decay: Decay = "linear"
) -> Callable[[int], float]:
    """Returns the learning rate as a function of the update 1, 2, ..."""
    return lambda update: peak * learning_rate_factor(update, updates, warmup, decay)
