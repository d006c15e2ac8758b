"""The mean of the states that a head reads before training."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from finetune.batching.sampler import BatchConfig, batch_by_tokens
from finetune.data.token_store import compute_lengths
from finetune.distributed.fsdp import reshard
from finetune.evaluation.evaluate import compute_pass
from finetune.models.heads import LinearHead
from finetune.models.task_model import TaskModel
from task_formats import Encoded

MEAN_ROWS = 32
"""Training examples whose states are averaged: as many as an update has by default."""


def measure_mean_state(
    model: TaskModel,
    examples: Sequence[Encoded],
    batch_config: BatchConfig,
    accelerator: Accelerator,
) -> Tensor:
    """Returns the (D,) mean over examples of what the head reads, without dropout.

    The states of an example's views are summed. Every process computes all examples, and gets the
    same mean.
    """
    sums: list[Tensor] = []

    def collect(head: LinearHead, inputs: tuple[Tensor, Tensor]) -> None:
        features, present = inputs
        has_views = present.any(1)  # A window may be absent.
        sums.append(head.sum_views(features.float(), present)[has_views])

    rows, limit = np.arange(len(examples)), batch_config.max_tokens_per_forward
    with model.head.register_forward_pre_hook(collect):
        for passed in batch_by_tokens(rows, compute_lengths(examples), batch_config.layout, limit):
            compute_pass(model, examples, batch_config, accelerator, passed)
    reshard(model)  # So that an optimizer gets shards.
    return torch.cat(sums).mean(0)
