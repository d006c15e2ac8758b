"""The training objective of GPT-1 (sections 3.1 and 3.2): task loss + λ · language-model loss.

For an update over N labelled examples x with labels y and U views (token sequences) u:

    L2 = (1 / N) Σ_x −log P(y | x)                      task loss; (score − y)² for scores;
                                                        for several labels at once the mean over
                                                        them of binary cross-entropy
    L1 = (1 / U) Σ_u (1 / |u|) Σ_t −log P(u_t | u_<t)   LM loss; t: the |u| tokens after the start
    L3 = L2 + λ · L1                                    what is minimised; λ = 0.5 in the paper

A batch holds a part of an update. Its weights (`example_weight`, `token_weight`) contain the
factors 1 / N and 1 / (U |u|), so the losses and gradients of all batches of an update add up to
the above. With class weights w the factor is 1 / Σ_x w_y instead of 1 / N, as in PyTorch's
CrossEntropyLoss over the whole update. L3 contains L2 / σ² where scores are standardized by their
standard deviation σ.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune.batching.collate import NO_LABEL, Batch
from finetune.models.speedups.reused_memory import ReusedMemory

CHUNK = 1024
"""Targets per chunk of logits."""
GPU_CHUNK = 4096
"""The same on a GPU. Each chunk reads and writes the whole gradient of the output layer once."""
_COLUMN_MULTIPLE = 32
"""The vocabulary size V is rounded up to V′, a multiple of this. Matrix rows that start at
multiples of 64 bytes are computed a third faster than rows of GPT-2's 50,257 columns."""


class Outputs(NamedTuple):
    """What a model computes from a batch of N examples."""

    logits: Tensor
    """(N, C) for classes, (N, K) for choices and prompted answers, (N, 1) for scores."""
    lm_loss: Tensor
    """(): the batch's share of the update's LM loss L1; 0 if it was not computed."""


class Losses(NamedTuple):
    """A batch's shares of an update's losses L3, L2 and L1, each ()."""

    total: Tensor
    task: Tensor
    lm: Tensor


class TaskLossOptions(NamedTuple):
    """How the task loss of training differs from the plain one."""

    class_weights: Tensor | None = None
    """(C,) weight of each class."""
    label_smoothing: float = 0.0
    """Share ε of the true label's probability that is spread evenly over all labels."""
    is_distribution: bool = False
    """(N, C) labels are probabilities of classes that exclude each other, not several labels."""
    score_deviation: float = 1.0
    """Standard deviation σ of scores: L3 contains their squared error / σ²."""


PLAIN = TaskLossOptions()


def objective(
    outputs: Outputs,
    batch: Batch,
    lm_coefficient: float,
    options: TaskLossOptions = PLAIN,
) -> Losses:
    """Computes the loss L3 = L2 + λ · L1 of a batch (GPT-1, section 3.2, equation 5)."""
    task = (batch.example_weight * task_loss(outputs.logits, batch.label, options)).sum()
    total = task / options.score_deviation**2 + lm_coefficient * outputs.lm_loss
    return Losses(total, task, outputs.lm_loss)


def task_loss(logits: Tensor, label: Tensor, options: TaskLossOptions = PLAIN) -> Tensor:
    """Computes the task loss of each example, 0 for unlabelled ones.

    With class weights and label smoothing it is PyTorch's `cross_entropy` without reduction.
    Smoothing spreads probability over the choices that an example has. For several labels at once
    the weights are the `pos_weight` of `binary_cross_entropy_with_logits`, and smoothing moves its
    targets from 0 and 1 to ε / 2 and 1 − ε / 2. Against probabilities it is PyTorch's
    cross-entropy with them as the target.

    Args:
        logits: (N, C) for classes, (N, K) for choices, (N, 1) for scores.
        label: (N,) long, -100 where unlabelled; or float for scores, NaN where unlabelled; or
            (N, C) float for several labels at once, 1 where a label applies, or for the
            probabilities of the classes.
        options: Class weights and label smoothing.

    Returns:
        (N,) cross-entropies in nats, or squared errors for scores.
    """
    logits = to_float(logits)
    weights = options.class_weights
    if weights is not None:
        weights = weights.to(logits.device, logits.dtype, non_blocking=True)
    if label.dim() == 2 and options.is_distribution:
        target, smoothing = label.nan_to_num().to(logits.dtype), options.label_smoothing
        each = cross_entropy(logits, target, weights, reduction="none", label_smoothing=smoothing)
        return torch.where(label[:, 0].isnan(), 0.0, each)
    if label.dim() == 2:
        target = (
            label.nan_to_num()
            .to(logits.dtype)
            .lerp(torch.full_like(logits, 0.5), options.label_smoothing)
        )
        each = binary_cross_entropy_with_logits(
            logits, target, reduction="none", pos_weight=weights
        )
        return torch.where(label[:, 0].isnan(), 0.0, each.mean(-1))
    if label.is_floating_point():
        return torch.where(label.isnan(), 0.0, logits[:, 0] - label).square()
    loss = cross_entropy(logits, label, weights, reduction="none", ignore_index=NO_LABEL)
    if not options.label_smoothing:
        return loss
    present = ~logits.isneginf()
    all_losses = torch.where(present, -logits.log_softmax(-1), 0.0)
    if weights is not None:
        all_losses = all_losses * weights
    mean = torch.where(label == NO_LABEL, 0.0, all_losses.sum(-1) / present.sum(-1))
    return loss.lerp(mean, options.label_smoothing)


def token_losses(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    cap: float | None = None,
    memory: ReusedMemory | None = None,
) -> Tensor:
    """Computes the negative log-likelihood of each of M targets, without a gradient.

    Shapes as in `lm_loss`; returns (M,) losses in nats.
    """
    dtype, memory = _compute_dtype(states), memory or ReusedMemory()
    with torch.no_grad(), _without_autocast(states):
        chunks = _logit_chunks(states, _cast(weight, dtype, memory), bias, cap, memory, target)
        return torch.cat([_nll_and_softmax(logits, tokens) for logits, _, _, tokens in chunks])


def lm_loss(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    token_weight: Tensor,
    cap: float | None = None,
    memory: ReusedMemory | None = None,
) -> Tensor:
    """Computes the weighted LM loss of M targets without holding M × V logits.

    Equals `(token_weight * cross_entropy(linear(states, weight, bias), target)).sum()`. The
    gradient is computed in the forward pass, a chunk of targets at a time. PyTorch's chunked
    `linear_cross_entropy` has no weight per target, with which it would have to compute the logits
    a second time in the backward pass.

    Args:
        states: (M, D) states that predict the targets.
        weight: (V, D) of the output layer.
        bias: (V,) of the output layer.
        target: (M,) tokens.
        token_weight: (M,) weights of the targets.
        cap: Replaces each logit z by cap · tanh(z / cap).
        memory: For intermediate results; that of the last call can be used again.

    Returns:
        (): Σ token_weight · nll in nats.
    """
    dtype = _compute_dtype(states)
    with _without_autocast(states):
        memory = memory or ReusedMemory()
        return _LmLoss.apply(states, weight, bias, target, token_weight, dtype, cap, memory)


class _LmLoss(torch.autograd.Function):
    """The gradient with respect to logits is (softmax(logits) − onehot(target)) · token_weight."""

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
        memory: ReusedMemory,
    ) -> Tensor:
        table = _cast(weight, dtype, memory)
        d_states = torch.empty_like(states)
        d_weight: Tensor | None = None
        d_bias = None if bias is None else torch.zeros_like(bias)
        token_weight = token_weight.to(torch.promote_types(dtype, torch.float32))[:, None]
        loss = token_weight.new_zeros(())
        chunks = _logit_chunks(states, table, bias, cap, memory, target, token_weight, d_states)
        for padded, products, rows, tokens, factors, d_rows in chunks:
            logits = padded[:, : len(table)]  # (m, V) of (m, V′)
            cap_slope = None if cap is None else 1 - (logits / cap).square()  # 1 − tanh²
            nll = _nll_and_softmax(padded, tokens)
            loss += factors[:, 0].dot(nll)
            # Now padded holds probabilities p. At the target the gradient is p - 1.
            padded.scatter_(1, tokens[:, None], torch.expm1(-nll)[:, None])
            if cap_slope is not None:
                logits *= cap_slope
            gradient = products.copy_(padded)[:, : len(table)]
            d_rows.copy_((gradient @ table) * factors)
            if ctx.needs_input_grad[1]:
                d_weight = _add_product(
                    d_weight, gradient.t(), (rows * factors).to(dtype), weight.dtype, memory
                )
            if d_bias is not None:
                d_bias += logits.t() @ factors[:, 0]
        ctx.save_for_backward(d_states, d_weight, d_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = outer
        d_states, d_weight, d_bias = ctx.saved_tensors
        gradients = (d_states, d_weight, d_bias)
        scaled = (None if gradient is None else gradient.mul_(scale) for gradient in gradients)
        return (*scaled, None, None, None, None, None)


def _logit_chunks(
    states: Tensor,
    table: Tensor,
    bias: Tensor | None,
    cap: float | None,
    memory: ReusedMemory,
    *others: Tensor,
) -> Iterator[tuple[Tensor, ...]]:
    """Yields the (m, V′) logits of every chunk of (M, D) states, all in the same memory.

    Logits are float32 or float64, and -inf in the columns beyond V. With them come memory of their
    shape in the type of the table, which is theirs where the type is, and the chunk's rows of the
    states and of the other tensors. Chunks have equal sizes.
    """
    chunk = CHUNK if states.device.type == "cpu" else GPU_CHUNK
    size = max(math.ceil(len(states) / max(math.ceil(len(states) / chunk), 1)), 1)
    columns = math.ceil(len(table) / _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE
    shape = (min(size, len(states)), columns)
    products = memory.take("products", *shape, table, table.dtype)
    exact = products
    if table.dtype.itemsize < torch.float32.itemsize:
        exact = memory.take("logits", *shape, table, torch.float32)
    for rows, *parts in zip(*(x.split(size) for x in (states, *others)), strict=True):
        padded = narrow = products[: len(rows)]
        padded[:, len(table) :] = -torch.inf
        logits = torch.mm(rows.to(table.dtype), table.t(), out=padded[:, : len(table)])
        if bias is not None:
            logits += bias
        if exact is not products:
            padded = exact[: len(rows)].copy_(padded)
        if cap is not None:
            padded[:, : len(table)].div_(cap).tanh_().mul_(cap)
        yield padded, narrow, rows, *parts


def _nll_and_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """(m,) negative log-likelihoods of targets; turns the (m, V′) logits into probabilities."""
    max_logit, target_logit = logits.amax(-1), logits.gather(1, target[:, None])[:, 0]
    torch.softmax(logits, -1, out=logits)
    # The largest probability is at least 1 / V, so its logarithm is exact enough.
    return max_logit - logits.amax(-1).log() - target_logit


def _add_product(
    total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype, memory: ReusedMemory
) -> Tensor:
    """Adds left @ right to the total, which may have a wider type; without a total it is the first.

    Zeros to begin with would be another 150 MB to allocate and to fill for GPT-2.
    """
    if dtype == left.dtype:
        return left @ right if total is None else total.addmm_(left, right)
    product = memory.take("product", len(left), right.shape[1], left, left.dtype)
    torch.mm(left, right, out=product)
    return product.to(dtype) if total is None else total.add_(product)


def _cast(weight: Tensor, dtype: torch.dtype, memory: ReusedMemory) -> Tensor:
    """The (V, D) weight in another type."""
    if weight.dtype == dtype:
        return weight
    return memory.take("weight", len(weight), weight.shape[1], weight, dtype).copy_(weight)


def to_float(values: Tensor) -> Tensor:
    """Values in float32, or unchanged if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def _without_autocast(states: Tensor) -> torch.autocast:
    """Autocast would round every product to bfloat16, also those that must be exact."""
    return torch.autocast(states.device.type, enabled=False)


def _compute_dtype(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
