"""torch.compile for a decoder's blocks, once for all lengths."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from finetune.models.blocks import require_blocks


def compile_blocks(
    decoder: PreTrainedModel, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compiles every block but the last when it first runs; names and weights stay.

    Attention is not compiled: the number of sequences in a row differs from pass to pass. The last
    block is not compiled because it may stop after computing its keys (`last_token`).

    Raises:
        UsageError: The blocks cannot be identified.
    """
    for block in list(require_blocks(decoder, "train.compile"))[:-1]:
        block.compile(dynamic=True, backend=backend)
