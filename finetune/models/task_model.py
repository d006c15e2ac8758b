"""The model that is fine-tuned: a decoder and the head of a task."""

from torch import nn
from transformers import PreTrainedModel

from finetune.batching.collate import Batch
from finetune.models.decoder import DecoderWrapper
from finetune.models.heads import LinearHead, build_head
from finetune.models.losses import Outputs
from finetune.models.pretrained import Base
from task_formats import Task


class TaskModel(nn.Module):
    """A decoder and a head that reads its states at the extract tokens (GPT-1, section 3.2)."""

    def __init__(self, decoder: PreTrainedModel, head: LinearHead) -> None:
        super().__init__()
        self.backbone = DecoderWrapper(decoder)
        self.head = head
        self.temperature = 1.0
        """Divides the logits, for calibrated probabilities; it is 1 in training."""

    def forward(self, batch: Batch, lm: bool = False) -> Outputs:
        """Computes the logits of a batch and, with `lm`, its share of the LM loss.

        Without `lm` the loss is 0, and the last block runs for last tokens only.
        """
        states = self.backbone.hidden_states(batch, last_tokens_only=not lm)
        features = states[batch.last_index.clamp(min=0)]  # (N, K, D)
        logits = self.head(features, batch.last_index >= 0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if not lm:
            return Outputs(logits, logits.new_zeros(()))
        loss = self.backbone.lm_loss(states[batch.lm_index], batch.lm_target, batch.token_weight)
        return Outputs(logits, loss)


def build_task_model(
    base: Base, task: Task, head_dropout: float = 0.1, head_bias: bool = True
) -> TaskModel:
    """Builds the model of a task on the weights of a base, with a new head drawn at random."""
    # The output layer's width, because OPT's states may be narrower than its embeddings.
    width = base.decoder.get_output_embeddings().weight.shape[1]
    return TaskModel(base.decoder, build_head(task, width, head_dropout, head_bias))
