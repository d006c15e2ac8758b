"""What training minimises: task loss + λ · language-model loss (GPT-1, section 3.2)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from finetune.batch import NO_LABEL, Batch

CHUNK = 1024
"""Targets whose V logits exist at one time."""


class Outputs(NamedTuple):
    """What a reader of a decoder gives for a batch."""

    logits: Tensor
    """(N, L): a number per class, per choice, or the one score."""
    lm_loss: Tensor
    """(): this batch's share of the update's LM loss; 0 where it was not asked for."""


class Losses(NamedTuple):
    """A batch's share of the update's losses, each (); detached sums of these are the update's."""

    total: Tensor
    task: Tensor
    lm: Tensor


def objective(outputs: Outputs, batch: Batch, lm_coefficient: float) -> Losses:
    """L3 = L2 + λ · L1. L2 is cross-entropy for classes and choices, squared error for scores."""
    task = (batch.share * task_loss(outputs.logits, batch.label)).sum()
    return Losses(task + lm_coefficient * outputs.lm_loss, task, outputs.lm_loss)


def task_loss(logits: Tensor, label: Tensor) -> Tensor:
    """(N, L) logits and (N,) labels to (N,) losses, 0 where unlabelled."""
    if label.is_floating_point():
        error = wide(logits[:, 0]) - label
        return torch.where(label.isnan(), 0.0, error).square()
    return cross_entropy(wide(logits), label, reduction="none", ignore_index=NO_LABEL)


def token_losses(states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """(M, D) states to (M,) negative log-likelihoods of their targets, in nats, no gradient kept.

    Never more than CHUNK rows of V logits exist at a time.
    """
    parts = [
        cross_entropy(wide(linear(part, weight, bias)), goal, reduction="none")
        for part, goal in zip(states.split(CHUNK), target.split(CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def lm_loss(
    states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, share: Tensor
) -> Tensor:
    """Σ share · nll over M targets, its gradient made in the forward pass, chunk by chunk.

    Equal to `(share * cross_entropy(linear(states, weight, bias), target)).sum()`, without ever
    holding M × V logits.
    """
    return _LmLoss.apply(states, weight, bias, target, share)


class _LmLoss(torch.autograd.Function):
    """The gradient of softmax cross-entropy is known with its value: (p − onehot) · share."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        share: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        dtype = _compute_dtype(states)
        table = weight.to(dtype)
        d_states = torch.empty_like(states) if wanted[0] else None
        d_weight = torch.zeros_like(weight) if wanted[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
        loss = wide(share).new_zeros(())
        for at in range(0, len(target), CHUNK):
            part = slice(at, at + CHUNK)
            rows = states[part].to(dtype)
            logits = wide(linear(rows, table, None if bias is None else bias.to(dtype)))
            loss = loss + _slope_in_place(logits, target[part], share[part])
            slope = logits.to(dtype)
            if d_states is not None:
                d_states[part] = slope @ table
            if d_weight is not None:
                d_weight.addmm_(slope.t(), rows) if dtype == weight.dtype else d_weight.add_(
                    slope.t() @ rows
                )
            if d_bias is not None:
                d_bias += logits.sum(0)
        ctx.save_for_backward(d_states, d_weight, d_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        parts = (None if part is None else part.mul_(scale) for part in ctx.saved_tensors)
        return (*parts, None, None)


def _slope_in_place(logits: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Turns (m, V) logits into the loss's slope at them; gives Σ share · nll."""
    share = share.to(logits.dtype)
    top = logits.logsumexp(dim=-1, keepdim=True)
    picked = logits.gather(1, target[:, None])
    loss = (share * (top - picked)[:, 0]).sum()
    logits.sub_(top).exp_().mul_(share[:, None])
    logits.scatter_add_(1, target[:, None], -share[:, None])
    return loss


def wide(values: Tensor) -> Tensor:
    """In float32, or in float64 where that is what is computed in."""
    return values if values.dtype == torch.float64 else values.float()


def _compute_dtype(states: Tensor) -> torch.dtype:
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
