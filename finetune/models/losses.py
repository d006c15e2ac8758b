"""The training objective of GPT-1 (sections 3.1 and 3.2): task loss + λ · language-model loss.

For an update over N labelled examples x with labels y and V views (token sequences) u:

    L2 = (1 / N) Σ_x −log P(y | x)                      task loss; (score − y)² for scores
    L1 = (1 / V) Σ_u (1 / |u|) Σ_t −log P(u_t | u_<t)   LM loss; t: the |u| tokens after the start
    L3 = L2 + λ · L1                                    what is minimised; λ = 0.5 in the paper

A batch holds a part of an update. Its weights (`example_weight`, `token_weight`) contain the
factors 1 / N and 1 / (V |u|), so the losses and gradients of all batches of an update add up to
the above.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.batching.collate import NO_LABEL, Batch
from finetune.models.speedups.embedding_gradients import accumulates_in_place

CHUNK = 1024
"""Targets whose V logits exist at one time."""
_COLUMN_MULTIPLE = 32
"""Chunks of logits have a multiple of this many columns: rows that start at multiples of 64 bytes
are computed a third faster than rows of GPT-2's 50,257 columns."""


class Outputs(NamedTuple):
    """What a model computes from a batch of N examples."""

    logits: Tensor
    """(N, C) for classes, (N, K) for choices and prompted answers, (N, 1) for scores."""
    lm_loss: Tensor
    """(): the batch's share of the update's LM loss L1; 0 where it was not asked for."""


class Losses(NamedTuple):
    """A batch's shares of an update's losses L3, L2 and L1, each ()."""

    total: Tensor
    task: Tensor
    lm: Tensor


def objective(outputs: Outputs, batch: Batch, lm_coefficient: float) -> Losses:
    """Computes the loss L3 = L2 + λ · L1 of a batch (GPT-1, section 3.2, equation 5).

    Args:
        outputs: Of the model for the batch.
        batch: Its labels and the weights of its examples.
        lm_coefficient: λ.
    """
    task = (batch.example_weight * task_loss(outputs.logits, batch.label)).sum()
    return Losses(task + lm_coefficient * outputs.lm_loss, task, outputs.lm_loss)


def task_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Computes the task loss of each example, 0 for unlabelled ones.

    Args:
        logits: (N, C) for classes, (N, K) for choices, (N, 1) for scores.
        label: (N,) long, -100 where unlabelled; or float for scores, NaN where unlabelled.

    Returns:
        (N,) cross-entropies in nats, or squared errors for scores.
    """
    if label.is_floating_point():
        error = to_float(logits[:, 0]) - label
        return torch.where(label.isnan(), 0.0, error).square()
    return cross_entropy(to_float(logits), label, reduction="none", ignore_index=NO_LABEL)


def token_losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cap: float | None = None,
) -> Tensor:
    """Computes the negative log-likelihood of each of M targets, without a gradient.

    Shapes as in `lm_loss`; returns (M,) losses in nats.
    """
    table = weight.to(_compute_dtype(states))
    with torch.no_grad(), _without_autocast(states):
        chunks = _LogitChunks.allocate(states, table)
        losses = []
        for rows, tokens in chunks.split(states, target):
            logits = chunks.logits(rows.to(table.dtype), table, bias)
            _apply_cap(logits[:, : len(table)], cap)
            losses.append(_nll_and_softmax(logits, tokens))
        return torch.cat(losses) if losses else states.new_zeros(0, dtype=torch.float32)


def lm_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    token_weight: Tensor,
    cap: float | None = None,
) -> Tensor:
    """Computes the weighted LM loss of M targets without holding M × V logits.

    Equals `(token_weight * cross_entropy(linear(states, weight, bias), target)).sum()`. The
    gradient is computed in the forward pass, CHUNK targets at a time. PyTorch's chunked
    `linear_cross_entropy` has no weight per target, with which it would have to compute the logits
    a second time in the backward pass.

    Args:
        states: (M, D) states that predict the targets.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        target: (M,) tokens.
        token_weight: (M,) weights of the targets.
        cap: Replaces each logit z by cap · tanh(z / cap).

    Returns:
        (): Σ token_weight · nll in nats.
    """
    dtype = _compute_dtype(states)
    with _without_autocast(states):
        return _LmLoss.apply(states, weight, bias, target, token_weight, dtype, cap)


class _LmLoss(torch.autograd.Function):
    """The gradient of the logits is (softmax(logits) − onehot(target)) · token_weight."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        token_weight: Tensor,
        dtype: torch.dtype,
        cap: float | None,
    ) -> Tensor:
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        table = weight.to(dtype)
        chunks = _LogitChunks.allocate(states, table)
        d_states = torch.empty_like(states) if needs_states else None
        d_weight = torch.empty_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        token_weight = token_weight.to(chunks.exact.dtype)[:, None]
        loss, start = token_weight.new_zeros(()), 0
        for rows, tokens, factors in chunks.split(states, target, token_weight):
            padded = chunks.logits(rows.to(table.dtype), table, bias)  # (m, V′)
            logits = padded[:, : len(table)]  # (m, V)
            _apply_cap(logits, cap)
            cap_slope = None if cap is None else _cap_slope(logits, cap)
            nll = _nll_and_softmax(padded, tokens)
            loss += factors[:, 0].dot(nll)
            # Now padded holds probabilities p. At the target the gradient is p - 1.
            padded.scatter_(1, tokens[:, None], torch.expm1(-nll)[:, None])
            if cap_slope is not None:
                logits *= cap_slope
            gradient = chunks.to_product_dtype(padded)[:, : len(table)]
            if d_states is not None:
                d_states[start : start + len(rows)] = (gradient @ table) * factors
            if d_weight is not None:
                scaled_rows = (rows * factors).to(table.dtype)
                _add_product(d_weight, gradient.t(), scaled_rows, first=start == 0)
            if d_bias is not None:
                d_bias += logits.t() @ factors[:, 0]
            start += len(rows)
        if start == 0 and d_weight is not None:
            d_weight.zero_()
        ctx.save_for_backward(d_states, d_weight, d_bias)
        ctx.weight = weight
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        d_states, d_weight, d_bias = ctx.saved_tensors
        if d_weight is not None and accumulates_in_place(ctx.weight):
            ctx.weight.grad.add_(d_weight, alpha=float(scale))
            d_weight = None
        gradients = (d_states, d_weight, d_bias)
        scaled = (None if gradient is None else gradient.mul_(scale) for gradient in gradients)
        return (*scaled, None, None, None, None)


class _LogitChunks(NamedTuple):
    """Memory in which one chunk of logits after the other is computed."""

    product: Tensor
    """(m, V′) in the type of the matrix product; -inf in the columns beyond the vocabulary."""
    exact: Tensor
    """(m, V′) in float32 or float64; the same memory where the product has that type."""

    @classmethod
    def allocate(cls, states: Tensor, table: Tensor) -> "_LogitChunks":
        """For (M, D) states in chunks of equal size, none larger than CHUNK."""
        chunks = max(math.ceil(len(states) / CHUNK), 1)
        columns = math.ceil(len(table) / _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE
        shape = (max(math.ceil(len(states) / chunks), 1), columns)
        product = states.new_empty(shape, dtype=table.dtype)
        return cls(product, to_float(product))

    def split(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Chunks of tensors of M rows each, side by side."""
        return zip(*(x.split(len(self.product)) for x in tensors if len(x)), strict=True)

    def logits(self, rows: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        """(m, D) states to (m, V′) logits."""
        product = self.product[: len(rows)]
        product[:, len(table) :] = -torch.inf
        logits = torch.mm(rows, table.t(), out=product[:, : len(table)])
        if bias is not None:
            logits += bias
        return product if self.exact is self.product else self.exact[: len(rows)].copy_(product)

    def to_product_dtype(self, values: Tensor) -> Tensor:
        """(m, V′) values in the type of the matrix products."""
        return values if self.exact is self.product else self.product[: len(values)].copy_(values)


def _apply_cap(logits: Tensor, cap: float | None) -> None:
    """Turns (m, V) logits z into cap · tanh(z / cap), in place."""
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)


def _cap_slope(capped: Tensor, cap: float) -> Tensor:
    """(m, V) derivatives of capped logits by the logits: 1 − tanh²."""
    return (capped / cap).square_().neg_().add_(1)


def _nll_and_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """(m,) negative log-likelihoods of targets; turns the (m, V′) logits into probabilities."""
    top, picked = logits.amax(-1), logits.gather(1, target[:, None])[:, 0]
    torch.softmax(logits, -1, out=logits)
    # The largest probability is at least 1 / V, so its logarithm is exact enough.
    return top - logits.amax(-1).log() - picked


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Adds left @ right to the total, which may have a wider type; the first replaces it."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right


def to_float(values: Tensor) -> Tensor:
    """Values in float32, or unchanged if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def _without_autocast(states: Tensor) -> torch.autocast:
    """Autocast would round every product to bfloat16, also those that must be exact."""
    return torch.autocast(states.device.type, enabled=False)


def _compute_dtype(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
