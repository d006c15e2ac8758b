"""The model that is fine-tuned: a decoder and the head of a task."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.decoder import DecoderWrapper
from finetune.models.heads import LinearHead, build_head
from finetune.models.losses import Outputs
from finetune.models.pretrained import Base
from task_formats import Task


class ScoreScale(NamedTuple):
    """Mean and standard deviation of the scores that a head is trained on.

    The head predicts (score - mean) / deviation, so that it need not grow from 0 to the unit of the
    scores, which takes many updates.
    """

    mean: float = 0.0
    deviation: float = 1.0


NO_SCALE = ScoreScale()


class TaskModel(nn.Module):
    """A decoder and a head that reads its states at the extract tokens (GPT-1, section 3.2)."""

    def __init__(
        self,
        decoder: PreTrainedModel,
        head: LinearHead,
        window_reduction: Literal["mean", "max"] = "mean",
        score_scale: ScoreScale = NO_SCALE,
    ) -> None:
        super().__init__()
        self.window_reduction = window_reduction
        self.score_scale = score_scale
        self.backbone = DecoderWrapper(decoder)
        self.head = head
        self.temperature = 1.0
        """Divides the logits, for calibrated probabilities; it is 1 in training."""

    def forward(self, batch: Batch, lm: bool = False) -> Outputs:
        """Computes the logits of a batch and, with `lm`, its share of the LM loss.

        Without `lm` the loss is 0, and the last block runs for last tokens only.
        """
        states = self.backbone.hidden_states(batch, last_tokens_only=not lm)
        # For the head a window is an example: (N W, K).
        last_index = batch.last_index.view(len(batch.last_index) * batch.windows, -1)
        present = last_index >= 0
        logits = self.head(states[last_index.clamp(min=0)], present)
        if batch.windows > 1:
            has_window = present.any(-1).view(-1, batch.windows)
            logits = logits.view(*has_window.shape, -1)
            logits = reduce_windows(logits, has_window, self.window_reduction)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.score_scale != NO_SCALE:
            logits = self.score_scale.mean + self.score_scale.deviation * logits
        if not lm:
            return Outputs(logits, logits.new_zeros(()))
        loss = self.backbone.lm_loss(states[batch.lm_index], batch.lm_target, batch.token_weight)
        return Outputs(logits, loss)

    def head_tensors(self) -> dict[str, Tensor]:
        """Returns the weights of a head that reads plain states and gives scores in their unit."""
        tensors = self.head.folded_tensors()
        if self.score_scale != NO_SCALE:
            mean, deviation = self.score_scale
            tensors["weight"] = deviation * tensors["weight"]
            if "bias" in tensors:
                tensors["bias"] = mean + deviation * tensors["bias"]
        return tensors


def reduce_windows(logits: Tensor, present: Tensor, reduction: Literal["mean", "max"]) -> Tensor:
    """Reduces (N, W, L) logits of windows to those of examples.

    Args:
        logits: Of every window; -inf for choices that an example does not have.
        present: (N, W) booleans, False for windows that an example does not have.
        reduction: The mean or the maximum over the windows.

    Returns:
        (N, L) logits.
    """
    absent = ~present[..., None]
    if reduction == "max":
        return logits.masked_fill(absent, -torch.inf).amax(1)
    return logits.masked_fill(absent, 0).sum(1) / present.sum(1, keepdim=True)


def build_task_model(
    base: Base,
    task: Task,
    head_dropout: float = 0.1,
    head_bias: bool = True,
    score_scale: ScoreScale = NO_SCALE,
) -> TaskModel:
    """Builds the model of a task on the weights of a base, with a new head drawn at random."""
    # The output layer's width, because OPT's states may be narrower than its embeddings.
    width = base.decoder.get_output_embeddings().weight.shape[1]
    head = build_head(task, width, head_dropout, head_bias)
    reduction = task.windows.reduce if task.windows else "mean"
    return TaskModel(base.decoder, head, reduction, score_scale)
