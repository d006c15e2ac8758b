"""The paper's Adam, out of PyTorch's fused AdamW."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from finetune.recipe.schema import TrainConfig


def build_optimizer(parameters: Iterable[nn.Parameter], part: TrainConfig) -> AdamW:
    """AdamW over what is trained; only tensors with more than one dimension decay."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "decay": part.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=part.learning_rate, betas=part.betas, eps=part.epsilon, fused=True)


def set_adamw_step(optimizer: AdamW, update: int, rate: float, epsilon: float) -> None:
    """Sets the numbers of update 1, 2, ... so that AdamW takes exactly the original's step.

    The original adds epsilon outside the bias correction and decays inside the corrected step:
    p −= r·√c₂/c₁ · (m/(√v + ε) + decay·p), cᵢ = 1 − βᵢᵗ. AdamW computes
    p −= r/c₁ · m/(√v/√c₂ + ε′) + r·decay′·p, which is the same for ε′ = ε/√c₂ and
    decay′ = decay·√c₂/c₁.
    """
    for group in optimizer.param_groups:
        first, second = (1 - beta**update for beta in group["betas"])
        group["lr"] = rate
        group["eps"] = epsilon / math.sqrt(second)
        group["weight_decay"] = group["decay"] * math.sqrt(second) / first
