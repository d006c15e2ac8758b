"""A second implementation of GPT-1's fine-tuning: slow, plain, in float64, after the paper.

It imports nothing from the packages under test. A view is a list of token ids, an example a list
of views. Functions run on numpy arrays (for values) and on float64 torch tensors (for gradients):
`xp` is the module of an array. T tokens, D width, V vocabulary, K views.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Array = Any
Weights = Mapping[str, Array]
View = Sequence[int]


class Shape(NamedTuple):
    """What the weights alone do not tell."""

    heads: int
    norms_first: bool
    """True for GPT-2; False for GPT-1."""
    epsilon: float = 1e-5


def module_of(array: Array) -> Any:
    """Numpy or torch, whichever the array belongs to."""
    return torch if isinstance(array, torch.Tensor) else np


def states(weights: Weights, shape: Shape, view: View) -> Array:
    """The decoder's last hidden states (T, D) of one view, read alone from position 0."""
    tokens, positions = _tables(weights)
    x = tokens[list(view)] + positions[: len(view)]
    layer = 0
    while f"h.{layer}.ln_1.weight" in weights:
        part = {
            name.removeprefix(f"h.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"h.{layer}.")
        }
        x = _block(part, shape, x)
        layer += 1
    assert layer, "no layers among the weights"
    return _norm(x, weights, "ln_f", shape.epsilon) if shape.norms_first else x


def _tables(weights: Weights) -> tuple[Array, Array]:
    """Token and position embeddings (V, D) and (positions, D)."""
    if "wte.weight" in weights:
        return weights["wte.weight"], weights["wpe.weight"]
    return weights["tokens_embed.weight"], weights["positions_embed.weight"]


def _block(part: Weights, shape: Shape, x: Array) -> Array:
    """One layer: attention, then the feed-forward part, each with its residual."""
    if shape.norms_first:
        x = x + _attention(part, shape.heads, _norm(x, part, "ln_1", shape.epsilon))
        return x + _feed_forward(part, _norm(x, part, "ln_2", shape.epsilon))
    x = _norm(x + _attention(part, shape.heads, x), part, "ln_1", shape.epsilon)
    return _norm(x + _feed_forward(part, x), part, "ln_2", shape.epsilon)


def _attention(part: Weights, heads: int, x: Array) -> Array:
    """Every token looks at itself and at those before it (T, D) -> (T, D)."""
    xp = module_of(x)
    steps, width = x.shape
    size = width // heads
    joined = x @ part["attn.c_attn.weight"] + part["attn.c_attn.bias"]
    hidden_future = [[0.0 if j <= i else -math.inf for j in range(steps)] for i in range(steps)]
    mask = xp.asarray(hidden_future, dtype=xp.float64)
    read = []
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        query, key, value = (joined[:, k * width : (k + 1) * width][:, at] for k in range(3))
        read.append(softmax(query @ key.T / math.sqrt(size) + mask) @ value)
    return xp.concatenate(read, -1) @ part["attn.c_proj.weight"] + part["attn.c_proj.bias"]


def _feed_forward(part: Weights, x: Array) -> Array:
    inner = gelu(x @ part["mlp.c_fc.weight"] + part["mlp.c_fc.bias"])
    return inner @ part["mlp.c_proj.weight"] + part["mlp.c_proj.bias"]


def _norm(x: Array, weights: Weights, name: str, epsilon: float) -> Array:
    centred = x - x.mean(-1)[:, None]
    variance = (centred * centred).mean(-1)[:, None]
    scaled = centred / (variance + epsilon) ** 0.5
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """The tanh form, as in GPT-1's code and GPT-2's."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + module_of(x).tanh(inner))


def log_softmax(x: Array) -> Array:
    """Over the last axis."""
    xp = module_of(x)
    top = xp.amax(x, -1)[..., None]
    return x - top - xp.log(xp.exp(x - top).sum(-1))[..., None]


def softmax(x: Array) -> Array:
    """Over the last axis."""
    return module_of(x).exp(log_softmax(x))


class Head(NamedTuple):
    """The linear layer at E: weight (C, D) and bias (C,)."""

    weight: Array
    bias: Array


def class_scores(
    weights: Weights, shape: Shape, head: Head, views: Sequence[View], read: int
) -> Array:
    """(C,): the states at E of all views added element-wise, then the linear layer.

    `read` is E's id; the state is taken at its first occurrence, as the original code does.
    """
    total = 0.0
    for view in views:
        total = total + states(weights, shape, view)[list(view).index(read)]
    return head.weight @ total + head.bias


def choice_scores(
    weights: Weights, shape: Shape, head: Head, views: Sequence[View], read: int
) -> Array:
    """(K,): each view's own state at E through a linear layer with one output."""
    each = [class_scores(weights, shape, head, [view], read) for view in views]
    return module_of(each[0]).concatenate(each)


def task_loss(scores: Sequence[Array], labels: Sequence[float], kind: str) -> Array:
    """The mean over examples: squared error for a "score", else −log p of the right answer."""
    total = 0.0
    for values, label in zip(scores, labels, strict=True):
        if kind == "score":
            total = total + (values[0] - label) ** 2
        else:
            total = total - log_softmax(values)[int(label)]
    return total / len(labels)


def sequence_loss(weights: Weights, shape: Shape, view: View) -> Array:
    """Mean −log p over one view's targets: every token after S, delimiters and E included."""
    tokens, _ = _tables(weights)
    chances = log_softmax(states(weights, shape, view) @ tokens.T)
    total = 0.0
    for t in range(1, len(view)):
        total = total - chances[t - 1, view[t]]
    return total / (len(view) - 1)


def language_loss(weights: Weights, shape: Shape, examples: Sequence[Sequence[View]]) -> Array:
    """The mean over all sequences of all examples, wrong answers included."""
    losses = [sequence_loss(weights, shape, view) for views in examples for view in views]
    return sum(losses) / len(losses)


class Loss(NamedTuple):
    """L3 and its two parts."""

    total: Array
    task: Array
    lm: Array


def objective(
    weights: Weights,
    shape: Shape,
    head: Head,
    examples: Sequence[Sequence[View]],
    labels: Sequence[float],
    kind: str,
    read: int,
    coefficient: float,
) -> Loss:
    """L3 of a batch; `kind` is "class", "choice" or "score", `read` the id of E."""
    score = choice_scores if kind == "choice" else class_scores
    scores = [score(weights, shape, head, views, read) for views in examples]
    task = task_loss(scores, labels, kind)
    lm = language_loss(weights, shape, examples)
    return Loss(task + coefficient * lm, task, lm)


def rate_factor(x: float, warmup: float = 0.002) -> float:
    """What the peak learning rate is multiplied by, x = t / T of the way through."""
    return (x / warmup if x <= warmup else 1.0) * (1 - x)


def clip(gradients: Sequence[np.ndarray], limit: float = 1.0) -> tuple[list[np.ndarray], float]:
    """Gradients scaled together so that their joint norm is at most `limit`; the norm before."""
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))
    scale = limit / norm if norm > limit else 1.0
    return [g * scale for g in gradients], norm


class Moments(NamedTuple):
    """Adam's running means of a gradient and of its square."""

    first: np.ndarray
    second: np.ndarray


def adam(
    weight: np.ndarray,
    gradient: np.ndarray,
    moments: Moments,
    step: int,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    decay: float = 0.01,
) -> tuple[np.ndarray, Moments]:
    """One update, `step` counted from 1; `rate` already holds the schedule's factor.

    As in GPT-1's code: epsilon is added to the uncorrected root; the bias corrections also scale
    the decoupled decay, which applies to weights with more than one axis.
    """
    first = betas[0] * moments.first + (1 - betas[0]) * gradient
    second = betas[1] * moments.second + (1 - betas[1]) * gradient**2
    corrected = rate * math.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    change = first / (np.sqrt(second) + epsilon)
    if weight.ndim > 1:
        change = change + decay * weight
    return weight - corrected * change, Moments(first, second)
