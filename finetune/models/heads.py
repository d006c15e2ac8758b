"""The layer that turns the states of a decoder into the logits of a task."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from task_formats import Classes, Task


class LinearHead(nn.Module):
    """A linear map of the states at the extract tokens (GPT-1, section 3.2, W_y).

    The axis that carries no label is summed: views for classes and scores, outputs for choices.
    A linear map of a sum is the sum of the maps, so for the two orders of a similarity pair this is
    the paper's element-wise addition of both states before the linear layer (section 3.3).

    Weights start at N(0, 0.02), the bias at 0, as in the original code.

    States of different examples have much in common. With `mean_state`, (D,), the head reads how
    they differ from their mean; else updates move the logits of all examples together at first. A
    head that is saved does not have it: `folded_tensors` puts it into the bias.

    Args:
        width: D, the width of the states.
        outputs: C classes, or 1 for a score. Choices always have one output, the score of a choice.
        is_multiple_choice: True where the views of an example are its choices.
        dropout: Probability of dropping a feature. All views of an example share one mask.
        bias: False for a linear map without a bias.
    """

    _constant, _sign = "bias", 1
    """The weight that takes up what is common to all scores, and its sign."""

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        is_multiple_choice: bool,
        dropout: float = 0.1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.is_multiple_choice, self.dropout = is_multiple_choice, dropout
        outputs = 1 if is_multiple_choice else outputs
        self.weight = nn.Parameter(0.02 * torch.randn(outputs, width))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)
        self.mean_state: Tensor | None
        self.register_buffer("mean_state", None, persistent=False)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Computes the logits of N examples of up to K views.

        Args:
            features: (N, K, D) states at the extract tokens.
            present: (N, K) booleans, False for views that an example does not have.

        Returns:
            (N, K) logits for choices, -inf where absent; else (N, C).
        """
        # In float32 under autocast too: the product is small, and its precision decides.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.weight.dtype)
            if not self.is_multiple_choice:
                features = self.sum_views(features, present)[:, None]
            if self.mean_state is not None:
                features = features - self.mean_state
            if self.training and self.dropout > 0:
                ones = features.new_ones(features.shape[0], 1, features.shape[2])
                features = features * nn.functional.dropout(ones, self.dropout)
            scores = features @ self.weight.t()
            if self.bias is not None:
                scores = scores + self.bias
        if self.is_multiple_choice:
            return scores[..., 0].masked_fill(~present, -torch.inf)
        return scores[:, 0]

    @staticmethod
    def sum_views(features: Tensor, present: Tensor) -> Tensor:
        """Returns the (N, D) sums of the states of the views that an example has."""
        return features.masked_fill(~present[..., None], 0).sum(1)

    @property
    def can_fold_mean(self) -> bool:
        """Whether an equal head without `mean_state` exists, and another than this one.

        The scores of choices are compared, so what they have in common does not matter.
        """
        return getattr(self, self._constant) is not None and not self.is_multiple_choice

    def folded_tensors(self) -> dict[str, Tensor]:
        """Returns the weights of an equal head without `mean_state`."""
        tensors: dict[str, Tensor] = self.state_dict()
        if self.mean_state is not None:
            common = tensors["weight"] @ self.mean_state
            tensors[self._constant] = tensors[self._constant] - self._sign * common
        return tensors


class OrdinalHead(LinearHead):
    """Cumulative logits for C ordered classes (McCullagh 1980, the proportional odds model).

    One linear map gives a score s, and the classes are its ranges between C − 1 ascending
    thresholds t: P(class <= k) = sigmoid(t_k − s). The logits are the logarithms of the classes'
    probabilities, so their softmax is these probabilities.

    At first all classes are equally likely where s is 0.

    Args:
        width: D, the width of the states.
        outputs: C >= 3 classes.
        dropout: Probability of dropping a feature.
    """

    _constant, _sign = "first_threshold", -1

    def __init__(self, width: int, outputs: int, *, dropout: float = 0.1) -> None:
        super().__init__(width, 1, is_multiple_choice=False, dropout=dropout, bias=False)
        start = [math.log(k / (outputs - k)) for k in range(1, outputs)]
        self.first_threshold = nn.Parameter(torch.tensor(start[:1]))
        self.log_gaps = nn.Parameter(torch.tensor(start).diff().log())

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Computes (N, C) log-probabilities; the arguments are those of `LinearHead`."""
        score = super().forward(features, present)  # (N, 1)
        gaps = torch.cat([self.first_threshold, self.log_gaps.exp()])
        limit = gaps.cumsum(0) - score  # (N, C - 1)
        infinity = limit.new_full((len(limit), 1), torch.inf)
        upper, lower = torch.cat([limit, infinity], 1), torch.cat([-infinity, limit], 1)
        # sigmoid(u) − sigmoid(l) = sigmoid(u) · sigmoid(−l) · (1 − exp(l − u))
        return logsigmoid(upper) + logsigmoid(-lower) + torch.log1p(-torch.exp(lower - upper))


def build_head(task: Task, width: int, dropout: float = 0.1, bias: bool = True) -> LinearHead:
    """Builds the head of a task for states of a width. Every head of gptft is made here."""
    if isinstance(task.labels, Classes) and task.labels.ordered:
        return OrdinalHead(width, task.labels.num_outputs, dropout=dropout)
    return LinearHead(
        width,
        task.labels.num_outputs,
        is_multiple_choice=task.format.is_multiple_choice,
        dropout=dropout,
        bias=bias,
    )
