"""What training minimises: task loss + λ · language-model loss (GPT-1, section 3.2)."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.batching.collate import NO_LABEL, Batch
from finetune.models.speedups.embedding_gradients import grows

CHUNK = 1024
"""Targets whose V logits exist at one time."""
_ALIGNED = 32
"""Logits have a multiple of this many columns."""


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
    task = (batch.example_weight * task_loss(outputs.logits, batch.label)).sum()
    return Losses(task + lm_coefficient * outputs.lm_loss, task, outputs.lm_loss)


def task_loss(logits: Tensor, label: Tensor) -> Tensor:
    """(N, L) logits and (N,) labels to (N,) losses, 0 where unlabelled."""
    if label.is_floating_point():
        error = wide(logits[:, 0]) - label
        return torch.where(label.isnan(), 0.0, error).square()
    return cross_entropy(wide(logits), label, reduction="none", ignore_index=NO_LABEL)


def token_losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cap: float | None = None,
) -> Tensor:
    """(M, D) states to (M,) negative log-likelihoods of their targets, in nats, no gradient kept.

    With a `cap` each logit z is cap · tanh(z / cap). Never more than CHUNK rows of V logits exist
    at a time.
    """
    table = weight.to(_compute_dtype(states))
    with torch.no_grad(), _as_written(states):
        rooms = _Rooms.build(states, table)
        parts = []
        for rows, goal in rooms.split(states, target):
            logits = rooms.logits(rows.to(table.dtype), table, bias)
            _cap(logits[:, : len(table)], cap)
            parts.append(_likelihoods(logits, goal))
        return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def lm_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor,
    cap: float | None = None,
) -> Tensor:
    """Σ share · nll over M targets, its gradient made in the forward pass, chunk by chunk.

    Equal to `(share * cross_entropy(linear(states, weight, bias), target)).sum()`, without ever
    holding M × V logits; with a `cap`, of logits cap · tanh(z / cap). PyTorch's own chunked
    `linear_cross_entropy` knows no share per target: with one, it has to make the logits a second
    time in the backward pass.
    """
    dtype = _compute_dtype(states)
    with _as_written(states):
        return _LmLoss.apply(states, weight, bias, target, share, dtype, cap)


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
        dtype: torch.dtype,
        cap: float | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        table = weight.to(dtype)
        rooms = _Rooms.build(states, table)
        d_states = torch.empty_like(states) if wanted[0] else None
        d_weight = torch.empty_like(weight) if wanted[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
        share = share.to(rooms.exact.dtype)[:, None]
        loss, at = share.new_zeros(()), 0
        for rows, goal, part in rooms.split(states, target, share):
            logits = rooms.logits(rows.to(table.dtype), table, bias)
            inside = logits[:, : len(table)]
            _cap(inside, cap)
            bend = None if cap is None else _bend(inside, cap)
            nll = _likelihoods(logits, goal)
            loss += part[:, 0].dot(nll)
            # What were logits are probabilities by now: one less at the target is their slope.
            logits.scatter_(1, goal[:, None], torch.expm1(-nll)[:, None])
            if bend is not None:
                inside *= bend
            slope = rooms.narrow(logits)[:, : len(table)]
            if d_states is not None:
                d_states[at : at + len(rows)] = (slope @ table) * part
            if d_weight is not None:
                _add_product(d_weight, slope.t(), (rows * part).to(table.dtype), first=at == 0)
            if d_bias is not None:
                d_bias += inside.t() @ part[:, 0]
            at += len(rows)
        if at == 0 and d_weight is not None:
            d_weight.zero_()
        ctx.save_for_backward(d_states, d_weight, d_bias)
        ctx.weight = weight
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        d_states, d_weight, d_bias = ctx.saved_tensors
        if d_weight is not None and grows(ctx.weight):
            ctx.weight.grad.add_(d_weight, alpha=float(scale))
            d_weight = None
        parts = (d_states, d_weight, d_bias)
        slopes = (None if part is None else part.mul_(scale) for part in parts)
        return (*slopes, None, None, None, None)


class _Rooms(NamedTuple):
    """The memory that chunk after chunk of logits is made in."""

    product: Tensor
    """(m, V′) as the matrix product gives them; -inf in the columns beyond the vocabulary."""
    exact: Tensor
    """(m, V′) in float32 or wider; the same memory where the product is."""

    @classmethod
    def build(cls, states: Tensor, table: Tensor) -> "_Rooms":
        """Rooms for M states in chunks as equal as can be, none longer than CHUNK."""
        chunks = max(math.ceil(len(states) / CHUNK), 1)
        # Rows that begin at multiples of 64 bytes are filled a third faster than those of GPT-2's
        # 50,257 columns.
        columns = math.ceil(len(table) / _ALIGNED) * _ALIGNED
        shape = (max(math.ceil(len(states) / chunks), 1), columns)
        product = states.new_empty(shape, dtype=table.dtype)
        return cls(product, wide(product))

    def split(self, *values: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Chunks of tensors of M rows each, side by side."""
        return zip(*(part.split(len(self.product)) for part in values if len(part)), strict=True)

    def logits(self, rows: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        """(m, D) states to (m, V′) logits."""
        room = self.product[: len(rows)]
        room[:, len(table) :] = -torch.inf
        inside = torch.mm(rows, table.t(), out=room[:, : len(table)])
        if bias is not None:
            inside += bias
        return room if self.exact is self.product else self.exact[: len(rows)].copy_(room)

    def narrow(self, values: Tensor) -> Tensor:
        """(m, V′) values in the type that products are made in."""
        return values if self.exact is self.product else self.product[: len(values)].copy_(values)


def _cap(logits: Tensor, cap: float | None) -> None:
    """Turns (m, V) logits z into cap · tanh(z / cap), where there is a cap."""
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)


def _bend(capped: Tensor, cap: float) -> Tensor:
    """(m, V) slopes of capped logits by those they were made of: 1 − tanh²."""
    return (capped / cap).square_().neg_().add_(1)


def _likelihoods(logits: Tensor, target: Tensor) -> Tensor:
    """(m,) negative log-likelihoods of targets; turns the (m, V′) logits into probabilities."""
    top, picked = logits.amax(-1), logits.gather(1, target[:, None])[:, 0]
    torch.softmax(logits, -1, out=logits)
    # The largest probability is at least 1 / V: its logarithm loses nothing.
    return top - logits.amax(-1).log() - picked


def _add_product(total: Tensor, one: Tensor, other: Tensor, *, first: bool) -> None:
    """Adds one @ other to the total, also where it is made in a narrower type; the first is it."""
    if total.dtype == one.dtype:
        torch.addmm(total, one, other, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(one @ other)
    else:
        total += one @ other


def wide(values: Tensor) -> Tensor:
    """In float32, or in float64 where that is what is computed in."""
    return values if values.dtype == torch.float64 else values.float()


def _as_written(states: Tensor) -> torch.autocast:
    """Autocast would narrow every product, also those that are meant to be exact."""
    return torch.autocast(states.device.type, enabled=False)


def _compute_dtype(states: Tensor) -> torch.dtype:
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
